"""Every configuration in ``configs/`` on a miniature of its data: two steps of training, with a tiny backbone."""

from collections.abc import Callable
from pathlib import Path

import miniatures
import pandas as pd
import pytest
from anomalib.cli import AnomalibCLI

from anomalib_ccl.data import make_sample_dataset
from anomalib_ccl.data.reading import view_paths

CONFIGS = Path(__file__).parents[3] / "configs"
# The number of categories in the data of each config.
PAPER = {"mvtec": 15, "visa": 12, "btad": 3, "realiad": 30, "realiad_512": 30, "manta": 38, "joint": 60}
CATEGORIES = {**PAPER, "sample": 6, "folders": 2}
# A small backbone and side of images for the network of each model config, and the data that it is tried on.
NETWORKS = {
    "ccl": ("test_efficientnet", 64, [*CATEGORIES]),
    "ccl_lite0": ("test_efficientnet", 64, ["sample"]),
    "ccl_vit": ("test_vit", 64, ["mvtec", "manta"]),
    "ccl_dinomaly": ("vit_tiny_patch16_224", 64, ["visa", "realiad"]),
}
SMALL = ["--model.pre_trained=false", "--data.num_workers=0"]
SHORT = ["--trainer.accelerator=cpu", "--trainer.max_steps=2", "--trainer.limit_val_batches=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the data are where the configs say."""
    folder = tmp_path_factory.mktemp("configs")
    for name, make in miniatures.MINIATURES.items():
        make(folder / "datasets" / name)
    make_sample_dataset(folder / "datasets/sample", size=32, train=4, test_good=1, per_defect=1)
    return folder


def small(model: str) -> list[str]:
    backbone, side, _ = NETWORKS[model]
    return [*SMALL, f"--model.backbone={backbone}", f"--model.image_size=[{side},{side}]"]


def test_no_config_is_left_out() -> None:
    assert {path.stem for path in (CONFIGS / "data").glob("*.yaml")} == set(CATEGORIES)
    assert {path.stem for path in (CONFIGS / "model").glob("*.yaml")} == set(NETWORKS)


@pytest.mark.parametrize(("model", "data"), [(model, data) for model in NETWORKS for data in NETWORKS[model][2]])
def test_every_network_takes_two_steps_on_every_data_set(
    model: str, data: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    command = ["fit", f"--config={CONFIGS}/model/{model}.yaml", f"--data={CONFIGS}/data/{data}.yaml"]
    trained = AnomalibCLI([*command, f"--default_root_dir={tmp_path}", *small(model), *SHORT])
    assert trained.engine.trainer.global_step == 2
    names = trained.model.classes.names
    assert len(names) == len(set(names)) == CATEGORIES[data]
    # No AUROC without both; anomalib's default for Real-IAD has no normal images in the test.
    assert trained.datamodule.test_data.samples.groupby("category")["label_index"].nunique().tolist() == [2] * len(
        names
    )
    if data == "joint":
        assert {f"{of}/{name}" for of in ("MVTecAD", "RealIAD") for name in ("toothbrush", "zipper")} <= set(names)


def test_command_trains_on_views_and_reports_and_draws_each_of_them(
    folder: Path, tmp_path: Path, anomalib: Callable
) -> None:
    command = ["train", f"--config={CONFIGS}/model/ccl.yaml", f"--data={CONFIGS}/data/manta.yaml", *SHORT]
    command += [*small("ccl"), f"--default_root_dir={tmp_path}", "--data.categories=[maize,nut]"]
    done = anomalib(*command, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = tmp_path.rglob("categories.csv")
    frame = pd.read_csv(report, index_col="category")
    assert frame["normal_images"].to_dict() == {"maize": 9, "nut": 9, "mean": 18}
    assert frame["anomalous_images"].to_dict() == {"maize": 1, "nut": 1, "mean": 2}
    files = [f"{name}/{label}/0000.png" for name in ("maize", "nut") for label in ("good", "bad")]
    (images,) = tmp_path.rglob("images")
    drawn = {path.relative_to(images).as_posix() for path in images.rglob("*.png") if path.is_file()}
    assert drawn == {view for file in files for view in view_paths(file)}
