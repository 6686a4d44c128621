"""anomalib's own commands, typed as a user types them, from training to a prediction of the exported model."""

import re
import subprocess
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from anomalib_ccl import CCL

ROOT = Path(__file__).parents[3]
NETWORK = ["--model.backbone=test_efficientnet", "--model.pre_trained=false", "--model.image_size=[64,64]"]
MODEL = ["--model=CCL", *NETWORK]
TRAINER = ["--trainer.accelerator=cpu", "--trainer.max_epochs=1"]
# A hub that nobody answers at, and that commands are not told to leave alone.
NO_HUB = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
Run = Callable[..., str]


@pytest.fixture(scope="session")
def typed(run) -> Run:
    """``typed("anomalib", "train", …, cwd=FOLDER)``: what was printed, where the command ends as it should."""

    def run_typed(*words: str | Path, code: int = 0, **options: object) -> str:
        done = run(*words, **options)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr + done.stdout

    return run_typed


def data(root: Path) -> list[str]:
    return ["--data=MultiCategory", f"--data.root={root}", "--data.num_workers=0", "--data.train_batch_size=8"]


@pytest.fixture(scope="module")
def trained(typed: Run, sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run, and what the run has printed."""
    folder = tmp_path_factory.mktemp("run")
    output = typed("anomalib", "train", *MODEL, *data(sample_root), *TRAINER, cwd=folder, env={"COLUMNS": "200"})
    return folder / "results/CCL/MultiCategory/latest", output


@pytest.fixture(scope="module")
def checkpoint(trained: tuple[Path, str]) -> Path:
    return trained[0] / "weights/lightning/model.ckpt"


def test_train_prints_the_table_of_categories_and_writes_it_as_csv(trained: tuple[Path, str]) -> None:
    folder, output = trained
    frame = pd.read_csv(folder / "categories.csv", index_col="category")
    assert list(frame.index)[-1] == "mean"
    assert len(frame) == 7
    for category in frame.index:
        cells = next(line.split() for line in output.splitlines() if line.split()[:1] == [category])
        assert f"{100 * frame.loc[category, 'pixel_AUROC']:.1f}" in cells


def test_train_keeps_a_heatmap_of_every_test_image(trained: tuple[Path, str], sample_root: Path) -> None:
    images = trained[0] / "images"
    expected = {f"{path.parts[-4]}/{path.parts[-2]}/{path.name}" for path in sample_root.glob("*/test/*/*.png")}
    assert {path.relative_to(images).as_posix() for path in images.rglob("*.png")} == expected


def test_test_takes_the_model_from_its_checkpoint(typed, trained, checkpoint, sample_root, tmp_path) -> None:
    words = ["--model=CCL", *data(sample_root), f"--ckpt_path={checkpoint}", "--trainer.accelerator=cpu"]
    output = typed("anomalib", "test", *words, cwd=tmp_path, env=NO_HUB)
    (report,) = {path.resolve() for path in tmp_path.rglob("categories.csv")}
    assert report.read_text() == (trained[0] / "categories.csv").read_text()
    assert "127.0.0.1" not in output


def test_predict_reads_images_of_any_size_and_folder(typed, checkpoint, sample_root, tmp_path) -> None:
    names = ["0.png", "line 1/0.png", "line 2/0.png"]
    photographs = sorted(sample_root.glob("*/test/good/*.png"))
    for name, path, size in zip(names, photographs, [(50, 70), (300, 20), (4, 4)], strict=False):
        target = tmp_path / "some images" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("RGB").resize(size).save(target)
    words = ["--model=CCL", f"--ckpt_path={checkpoint}", "--data=some images", "--trainer.accelerator=cpu"]
    output = typed("anomalib", "predict", *words, cwd=tmp_path, env=NO_HUB)
    (results,) = {path.parent.resolve() for path in tmp_path.glob("results/CCL/**/predictions.csv")}
    frame = pd.read_csv(results / "predictions.csv")
    assert frame["path"].tolist() == [str(tmp_path / "some images" / name) for name in names]
    assert ((frame["score"] > frame["threshold"]) == (frame["verdict"] == "anomalous")).all()
    assert {x.relative_to(results / "images").as_posix() for x in results.rglob("images/**/*.png")} == set(names)
    assert "127.0.0.1" not in output


def test_help_explains_every_argument_of_the_constructor(typed, tmp_path) -> None:
    output = " ".join(typed("anomalib", "fit", "--model.help=CCL", cwd=tmp_path).split())
    names = [name for name in signature(CCL).parameters if name != "self"]
    assert len(names) <= 20
    for name in names:
        assert re.search(rf"--model\.{name} (\S+ )?[A-Z][\w.'-]+ ", output), name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.categories=[brik]"], "category 'brik' not found under"),
        (["--data.root=absent"], "there is no folder"),
        (["--data.dataset=MVTecADD"], "dataset 'MVTecADD' is unknown"),
        (["--model.backbone_weights=absent.pth"], "backbone weights not found: absent.pth"),
        (
            ["--model.backbone=vit_tiny_patch16_224"],
            "backbone 'vit_tiny_patch16_224' is taken for a vision",
        ),
        (["--ckpt_path=absent.ckpt"], "absent.ckpt"),
    ],
)
def test_bad_arguments_end_with_a_message_that_names_them(typed, words, message, sample_root, tmp_path) -> None:
    output = typed("anomalib", "train", *MODEL, *data(sample_root), *TRAINER, *words, cwd=tmp_path, code=1)
    assert message in " ".join(output.split())
    # The link to the latest run stays with the last good one, but for files that only a run needs.
    assert not [*tmp_path.rglob("latest")] or words[0].endswith(("absent.ckpt", "absent.pth"))


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_ends_training_with_its_path(typed, make_category, workers, tmp_path) -> None:
    for name in ("bolt", "nut"):
        folder = make_category(tmp_path / "data", name)
    broken = folder / "train/good/000.png"
    broken.write_bytes(broken.read_bytes()[:100])
    options = [*MODEL, *data(tmp_path / "data"), *TRAINER, f"--data.num_workers={workers}"]
    output = typed("anomalib", "train", *options, cwd=tmp_path, code=1)
    assert str(broken) in "".join(output.split())  # over several lines


def test_unreadable_images_are_left_out_of_training_and_report_where_asked_for(typed, make_category, tmp_path) -> None:
    for name in ("bolt", "nut"):
        folder = make_category(tmp_path / "data", name)
    (folder / "train/good/000.png").write_text("no image")
    truncated = folder / "test/bad/001.png"
    truncated.write_bytes(truncated.read_bytes()[:1000])
    options = [*MODEL, *data(tmp_path / "data"), *TRAINER, "--data.skip_corrupt=true"]
    typed("anomalib", "train", *options, cwd=tmp_path)
    (report,) = {path.resolve() for path in tmp_path.rglob("categories.csv")}
    frame = pd.read_csv(report, index_col="category")
    assert frame["anomalous_images"].to_dict() == {"bolt": 2, "nut": 1, "mean": 3}


def test_the_program_of_anomalib_runs_as_it_is_installed(checkpoint, tmp_path) -> None:
    words = ["export", "--model=CCL", f"--ckpt_path={checkpoint}", "--export_type=torch", f"--export_root={tmp_path}"]
    subprocess.run([Path(sys.executable).with_name("anomalib"), *words], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "weights/torch/model.pt").is_file()
