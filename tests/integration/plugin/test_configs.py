"""Every configuration in ``configs/`` on a miniature of its data: two steps of training, with a tiny backbone."""

import subprocess
import sys
from pathlib import Path

import miniatures
import pandas as pd
import pytest
import yaml
from anomalib.cli import AnomalibCLI

from anomalib_ccl.data import make_sample_dataset
from anomalib_ccl.data.views import view_paths

CONFIGS = Path(__file__).parents[3] / "configs"
ANOMALIB = Path(sys.executable).with_name("anomalib")
# The number of categories in the data of each config.
PAPER = {"mvtec": 15, "visa": 12, "btad": 3, "realiad": 30, "realiad_512": 30, "manta": 38, "joint": 60}
CATEGORIES = {**PAPER, "sample": 6, "folders": 2}
# A small backbone and side of images for the network of each model config, and the data that it is tried on.
NETWORKS = {
    "ccl": ("mobilenetv3_small_100", 64, [*CATEGORIES]),
    "ccl_lite0": ("mobilenetv3_small_100", 64, ["sample"]),
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


def test_command_trains_on_views_and_reports_and_draws_each_of_them(folder: Path, tmp_path: Path) -> None:
    command = ["train", f"--config={CONFIGS}/model/ccl.yaml", f"--data={CONFIGS}/data/manta.yaml", *SHORT]
    command += [*small("ccl"), f"--default_root_dir={tmp_path}", "--data.categories=[maize,nut]"]
    subprocess.run([ANOMALIB, *command], cwd=folder, check=True, capture_output=True)
    (report,) = tmp_path.rglob("categories.csv")
    frame = pd.read_csv(report, index_col="category")
    assert frame["normal_images"].to_dict() == {"maize": 9, "nut": 9, "mean": 18}
    assert frame["anomalous_images"].to_dict() == {"maize": 1, "nut": 1, "mean": 2}
    files = [f"{name}/{label}/0000.png" for name in ("maize", "nut") for label in ("good", "bad")]
    (images,) = tmp_path.rglob("images")
    drawn = {path.relative_to(images).as_posix() for path in images.rglob("*.png") if path.is_file()}
    assert drawn == {view for file in files for view in view_paths(file)}


@pytest.mark.parametrize(("config", "side"), [("sample_patchcore", 128), ("patchcore", 160), ("padim", 160)])
def test_what_ccl_is_compared_with_sees_images_of_the_same_size(
    config: str, side: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    command = ["train", f"--config={CONFIGS}/benchmark/{config}.yaml", f"--default_root_dir={tmp_path}", *SMALL]
    command += ["--data.root=datasets/sample", "--trainer.accelerator=cpu", "--model.visualizer=false"]
    trained = AnomalibCLI(command)
    assert tuple(trained.model.pre_processor.transform.transforms[0].size) == (side, side)
    (report,) = tmp_path.rglob("categories.csv")
    assert len(pd.read_csv(report)) == CATEGORIES["sample"] + 1


def test_benchmark_of_the_paper_reports_every_network_on_every_data_set(tmp_path: Path) -> None:
    two = ["toothbrush", "zipper"]
    miniatures.mvtec(tmp_path / "datasets/MVTecAD", two)
    miniatures.visa(tmp_path / "datasets/visa", ["candle"])
    miniatures.btad(tmp_path / "datasets/BTech", ["01", "02", "03"])
    miniatures.real_iad(tmp_path / "datasets/Real-IAD", two)
    miniatures.manta(tmp_path / "datasets/MANTA", ["maize", "nut"])
    config = yaml.safe_load((CONFIGS / "benchmark/paper.yaml").read_text())
    config["accelerator"] = "cpu"
    grid = config["benchmark"]["model"]["grid"]
    stems = {"reverse_distillation": "ccl", "vit": "ccl_vit", "dinomaly": "ccl_dinomaly"}
    assert [model["init_args"]["reconstruction"] for model in grid] == [*stems]
    models = []
    for model in grid:
        backbone, side, _ = NETWORKS[stems[model["init_args"]["reconstruction"]]]
        arguments = {"backbone": backbone, "image_size": [side, side], "pre_trained": False, "visualizer": False}
        models.append({**model, "init_args": {**model["init_args"], **arguments}})
    config["benchmark"]["model"]["grid"] = models
    config["benchmark"]["data"]["init_args"] |= {"max_epochs": 1, "num_workers": 0}
    (tmp_path / "paper.yaml").write_text(yaml.safe_dump(config))
    subprocess.run([ANOMALIB, "benchmark", "--config=paper.yaml"], cwd=tmp_path, check=True, capture_output=True)
    (results,) = (tmp_path / "runs/benchmark").glob("*/results.csv")
    frame = pd.read_csv(results)
    assert len(frame) == 6 * len(models)
    assert frame["mean_image_AUROC"].notna().all()
    (categories,) = (tmp_path / "runs/benchmark").glob("*categories.csv")
    sizes = pd.read_csv(categories).groupby("run").size().tolist()
    assert sizes == [n + 1 for n in (2, 1, 3, 2, 2, 8) for _ in models]
