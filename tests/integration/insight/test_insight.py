"""``python -m anomalib_ccl.insight`` on a checkpoint that anomalib's engine has trained, typed as a user types it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from lightning import seed_everything
from PIL import Image

from anomalib_ccl import CCL, MultiCategory
from anomalib_ccl.insight import collect_scores
from anomalib_ccl.insight.__main__ import make_insight
from anomalib_ccl.model.calibration import ClassCalibration

CATEGORIES = ["brick", "grass", "retina"]
UNSEEN = "tissue"


def data(root: Path, categories: list[str]) -> MultiCategory:
    return MultiCategory(root=root, categories=categories, train_batch_size=8, num_workers=0)


@pytest.fixture(scope="module")
def run(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and the report of anomalib's own test of it."""
    folder = tmp_path_factory.mktemp("run")
    seed_everything(0)
    model = CCL("tf_efficientnet_lite0", image_size=(64, 64), visualizer=False)
    engine = Engine(max_epochs=6, default_root_dir=folder, accelerator="cpu", enable_progress_bar=False)
    engine.fit(model, datamodule=data(sample_root, CATEGORIES))
    engine.test(model, datamodule=data(sample_root, CATEGORIES))
    (report,) = folder.rglob("categories.csv")
    return Path(engine.best_model_path), report


def insight(folder: Path, *arguments: str | Path, code: int = 0) -> str:
    """Run the command in a folder and return what it printed on both streams."""
    command = [sys.executable, "-m", "anomalib_ccl.insight", *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    output = result.stdout + result.stderr
    assert result.returncode == code, output
    return output


def test_command_prints_the_table_and_writes_it_and_the_pictures(
    run: tuple[Path, Path], sample_root: Path, tmp_path: Path
) -> None:
    checkpoint, report = run
    arguments = {"root": str(sample_root), "categories": [*CATEGORIES, UNSEEN], "num_workers": 0}
    config = {"class_path": "anomalib_ccl.MultiCategory", "init_args": arguments}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(config))
    output = insight(tmp_path, "--ckpt_path", checkpoint, "--data", "data.yaml", "--output", "here")

    table = pd.read_csv(tmp_path / "here/calibration.csv", index_col="category")
    assert list(table.index) == [*CATEGORIES, UNSEEN, "mean", "spread", "pooled"]
    assert table["trained_on"].tolist() == [name != UNSEEN for name in table.index]
    assert (table.loc[CATEGORIES, "normal_images"] == 2).all()
    assert (table.loc[CATEGORIES, "anomalous_images"] == 4).all()

    for kind in ("normal", "anomalous"):
        assert table.loc[UNSEEN, f"class_accuracy_{kind}"] == table.loc[UNSEEN, f"unknown_{kind}"]

    # anomalib's own test of the model is another way to the same figures.
    tested = pd.read_csv(report, index_col="category").loc[CATEGORIES, "image_AUROC"]
    pd.testing.assert_series_equal(table.loc[CATEGORIES, "image_AUROC_calibrated"], tested, check_names=False)

    assert "Warning" not in output
    assert "Importing from timm.models.layers" in (tmp_path / "here/log.txt").read_text(encoding="utf-8")

    for name in CATEGORIES:
        cells = [line.split()[1:] for line in output.splitlines() if line.split()[:1] == [name]]
        assert [len(row) for row in cells] == [6, 8, 9]
        assert cells[0][2] == f"{100 * table.loc[name, 'class_accuracy_normal']:.1f}"
        assert cells[1][5] == f"{100 * table.loc[name, 'false_alarms_calibrated_10']:.1f}"
    for name in ("embedding", "scores", "classes"):
        with Image.open(tmp_path / f"here/{name}.png") as picture:
            assert min(picture.size) > 300
            assert np.ptp(np.asarray(picture.convert("L"))) > 200


def test_training_images_are_seen_as_calibration_saw_them(run: tuple[Path, Path], sample_root: Path) -> None:
    model = CCL.load_from_checkpoint(run[0], visualizer=False)
    scores = collect_scores(model, data(sample_root, CATEGORIES))
    train = (scores.images["subset"] == "train").to_numpy()
    again = ClassCalibration()
    again.fit(
        torch.from_numpy(scores.embeddings[train]),
        torch.from_numpy(scores.images["raw"].to_numpy()[train]),
        torch.from_numpy(scores.images["category"].astype("category").cat.codes.to_numpy()[train]).long(),
    )
    for name, buffer in model.model.calibration.named_buffers():
        torch.testing.assert_close(again.get_buffer(name), buffer, rtol=1e-4, atol=1e-5)


def test_pseudo_classes_stand_for_the_categories_of_their_images(
    run: tuple[Path, Path], sample_root: Path, tmp_path: Path
) -> None:
    checkpoint = torch.load(run[0], weights_only=True)
    names = [f"pseudo_{k}" for k in range(3)]
    checkpoint["training_classes"] = {"names": names, "pseudo_labels": {"/elsewhere/0.png": "pseudo_0"}}
    torch.save(checkpoint, tmp_path / "pseudo.ckpt")
    model = CCL.load_from_checkpoint(tmp_path / "pseudo.ckpt", visualizer=False)
    assert collect_scores(model, data(sample_root, CATEGORIES)).categories == CATEGORIES


def test_uncalibrated_checkpoint_ends_in_one_line(run: tuple[Path, Path], sample_root: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(run[0], weights_only=True)
    checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if "calibration" not in k}
    torch.save(checkpoint, tmp_path / "old.ckpt")
    output = insight(tmp_path, "--ckpt_path=old.ckpt", "--data=MultiCategory", f"--data.root={sample_root}", code=1)
    assert output.splitlines()[-1].startswith("error: this model is not calibrated")
    assert "Traceback" not in output
    assert not (tmp_path / "results").exists()


def test_datamodule_without_categories_is_refused(run: tuple[Path, Path], sample_root: Path) -> None:
    model = CCL.load_from_checkpoint(run[0], visualizer=False)
    with pytest.raises(ValueError, match="MVTecAD does not tell the category of each image; use MultiCategory"):
        collect_scores(model, MVTecAD(sample_root, category="brick", num_workers=0))


def test_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nowhere\.ckpt"):
        make_insight(tmp_path / "nowhere.ckpt", MultiCategory(), tmp_path)
