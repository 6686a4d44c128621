"""anomalib's own commands, typed as a user types them, from training to a prediction of the exported model."""

import csv
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from anomalib.cli import AnomalibCLI
from lightning.pytorch.cli import SaveConfigCallback
from PIL import Image

from anomalib_ccl import MultiCategory

ROOT = Path(__file__).parents[3]
ANOMALIB = Path(sys.executable).with_name("anomalib")
MODEL = [
    "--model=CCL",
    "--model.backbone=mobilenetv3_small_100",
    "--model.pre_trained=false",
    "--model.image_size=[64,64]",
]
TRAINER = ["--trainer.accelerator=cpu", "--trainer.max_epochs=1"]


def run(folder: Path, *arguments: str | Path, program: Path = ANOMALIB, code: int = 0, **variables: str) -> str:
    """Run a command in a folder and return what it printed, last what it ended with."""
    command = [str(argument) for argument in (program, *arguments)]
    environment = os.environ | variables
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    output = result.stderr + result.stdout if code == 0 else result.stdout + result.stderr
    assert result.returncode == code, output
    return output


def data(root: Path) -> list[str]:
    return ["--data=MultiCategory", f"--data.root={root}", "--data.num_workers=0", "--data.train_batch_size=8"]


@pytest.fixture(scope="module")
def trained(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("run")
    return folder, run(folder, "train", *MODEL, *data(sample_root), *TRAINER)


@pytest.fixture(scope="module")
def checkpoint(trained: tuple[Path, str]) -> Path:
    return trained[0] / "results/CCL/MultiCategory/latest/weights/lightning/model.ckpt"


def test_train_prints_the_table_of_categories_and_writes_it_as_csv(trained: tuple[Path, str]) -> None:
    folder, output = trained
    frame = pd.read_csv(folder / "results/CCL/MultiCategory/latest/categories.csv", index_col="category")
    assert list(frame.index)[-1] == "mean"
    assert len(frame) == 7
    for category in frame.index:
        cells = next(line.split() for line in output.splitlines() if line.split()[:1] == [category])
        assert f"{100 * frame.loc[category, 'pixel_AUROC']:.1f}" in cells


def test_train_says_little_once_and_leaves_the_rest_to_a_log(trained: tuple[Path, str]) -> None:
    folder, output = trained
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    assert len(lines) == len(set(lines)) < 30
    assert not re.search(r"INFO|Warning|\bnan\b", output)
    assert "Other figures: embedding_V_measure" in output
    (log,) = (folder / "results/CCL/MultiCategory/v0").glob("log.txt")
    assert str(log) in lines[-1]
    said = log.read_text(encoding="utf-8")
    # From the import of the libraries, before there was a folder, to the end; with the summary of the model.
    for text in (
        "Importing from timm.models.layers",
        "Initializing CCL model",
        "GPU available",
        "Trainable params",
        "Testing took",
    ):
        assert said.count(text) == 1


def test_run_that_is_not_ours_says_what_it_says_without_the_plugin(tmp_path: Path) -> None:
    command = ["export", "--model=Padim", "--model.backbone=resnet18", "--model.pre_trained=false"]
    command += ["--export_type=torch", "--trainer.accelerator=cpu"]
    outputs = []
    for off in ("0", "1"):
        output = run(tmp_path, *command, ANOMALIB_CCL_DISABLE=off)
        # The columns of RichHandler's time differ, and Lightning names our callbacks.
        outputs.append({re.sub(r"[\d\W]+", " ", line) for line in output.splitlines() if "entry point" not in line})
    assert outputs[0] == outputs[1]
    assert not list(tmp_path.rglob("log.txt"))


def test_train_keeps_a_heatmap_of_every_test_image(trained: tuple[Path, str], sample_root: Path) -> None:
    images = trained[0] / "results/CCL/MultiCategory/latest/images"
    expected = {f"{path.parts[-4]}/{path.parts[-2]}/{path.name}" for path in sample_root.glob("*/test/*/*.png")}
    assert {path.relative_to(images).as_posix() for path in images.rglob("*.png")} == expected


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that nobody answers at, and that commands are not told to leave alone."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


@pytest.mark.usefixtures("no_hub")
def test_test_takes_the_model_from_its_checkpoint(sample_root: Path, checkpoint: Path, tmp_path: Path) -> None:
    output = run(
        tmp_path, "test", "--model=CCL", *data(sample_root), f"--ckpt_path={checkpoint}", "--trainer.accelerator=cpu"
    )
    assert "Test results per category" in output
    assert "127.0.0.1" not in output


def test_validate_takes_the_config_of_the_training(checkpoint: Path, tmp_path: Path) -> None:
    output = run(tmp_path, "validate", f"--config={checkpoint.parents[2]}/config.yaml", f"--ckpt_path={checkpoint}")
    assert "Test results per category" not in output


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("with_config", [False, True])
def test_predict_leaves_a_row_and_a_heatmap_of_every_image_in_a_folder_and_says_where(
    with_config: bool, sample_root: Path, checkpoint: Path, tmp_path: Path
) -> None:
    names = ["0.png", "line 1/0.png", "line 2/0.png"]
    for name, path, size in zip(
        names, sorted(sample_root.glob("*/test/good/*.png")), [(50, 70), (300, 20), (4, 4)], strict=False
    ):
        target = tmp_path / "some images" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("RGB").resize(size).save(target)
    model = f"--config={checkpoint.parents[2]}/config.yaml" if with_config else "--model=CCL"
    arguments = [model, f"--ckpt_path={checkpoint}", "--data=some images", "--trainer.accelerator=cpu"]
    output = run(tmp_path, "predict", *arguments)
    (results,) = {path.parent.resolve() for path in tmp_path.glob("results/CCL/**/predictions.csv")}
    frame = pd.read_csv(results / "predictions.csv")
    assert frame["path"].tolist() == [str(tmp_path / "some images" / name) for name in names]
    assert ((frame["score"] > frame["threshold"]) == (frame["verdict"] == "anomalous")).all()
    assert {x.relative_to(results / "images").as_posix() for x in results.rglob("images/**/*.png")} == set(names)
    assert output.count("Predictions: ") == output.count("Heatmaps: ") == 1
    assert "127.0.0.1" not in output


def test_export_and_predict_with_openvino(sample_root: Path, checkpoint: Path, tmp_path: Path) -> None:
    command = ["export", "--model=CCL", f"--ckpt_path={checkpoint}", "--export_type=openvino"]
    exported, logged = run(tmp_path, *command, f"--export_root={tmp_path}").splitlines()
    assert exported == f"Exported model to {tmp_path}/weights/openvino/model.xml"
    assert logged.endswith(f": {tmp_path}/log.txt")
    said = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "constant folding" in said
    assert "[torch.onnx] Run decompositions..." in said
    image = next(iter(sorted(sample_root.glob("*/test/good/*.png"))))
    script = ROOT / "examples/predict_openvino.py"
    model = tmp_path / "weights/openvino/model.xml"
    output = run(tmp_path, script, model, image, "heatmap.png", program=Path(sys.executable))
    assert re.search(rf"{image}: \w+, score [01]\.\d+, (normal|anomalous)\n", output)
    assert Image.open(tmp_path / "heatmap.png").width > 256


@pytest.mark.parametrize("command", ["fit", "train", "validate", "test", "predict", "export"])
def test_every_command_takes_the_config_of_the_training_and_leaves_it_in_place(
    command: str, trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained[0])
    config = Path("results/CCL/MultiCategory/latest/config.yaml")
    arguments = [command, f"--config={config}", *(["--export_type=torch"] if command == "export" else [])]
    cli = AnomalibCLI(arguments, run=False)
    assert cli.model.given == {"backbone": "mobilenetv3_small_100", "image_size": (64, 64)}
    assert isinstance(cli.datamodule, MultiCategory)
    (saved,) = (c for c in cli.engine._cache.args["callbacks"] if isinstance(c, SaveConfigCallback))
    assert saved.config_filename == ("config.yaml" if command in {"fit", "train"} else f"{command}.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["export", "--model=CCL", "--export_type=torch"],
            "error: anomalib export needs a trained model: give its checkpoint with",
        ),
        (
            ["predict", "--model=CCL", "--data=.", "--ckpt_path=absent.ckpt"],
            "error: no checkpoint at .*absent.ckpt; `anomalib train`",
        ),
        (
            ["export", "--model=CCL", "--model.projection=none", "--export_type=torch", "--ckpt_path={}"],
            r"error: .*model\.ckpt was trained with projection='standard', not projection='none'; leave that away",
        ),
    ],
)
def test_what_does_not_go_with_a_trained_model_ends_with_one_message_and_no_traceback(
    arguments: list[str], message: str, checkpoint: Path, sample_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "image.png").write_bytes((sample_root / "brick/test/good/000.png").read_bytes())
    output = run(tmp_path, *(argument.format(checkpoint) for argument in arguments), code=1)
    assert re.search(message, output.splitlines()[-1])
    assert "Traceback" not in output


def test_comparing_exports_prints_a_row_for_each_form(sample_root: Path, checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="needs pip install '.[int8]'")
    script = ROOT / "examples/compare_exports.py"
    for product in ("brick", "retina"):
        (tmp_path / "two" / product).parent.mkdir(exist_ok=True)
        (tmp_path / "two" / product).symlink_to(sample_root / product)
    output = run(tmp_path, script, checkpoint, tmp_path / "two", program=Path(sys.executable))
    table = output[output.index("size  latency") :].splitlines()[1:]
    assert [line.split()[0] for line in table[:4]] == ["PyTorch", "FP32", "FP16", "INT8_PTQ"]


def test_training_example_prints_the_table_and_a_prediction(
    sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    script = ROOT / "examples/train.py"
    output = run(tmp_path, script, sample_root, "--epochs=1", program=Path(sys.executable))
    assert "Test results per category" in output
    assert f"{sample_root}/brick/test/foreign/000.png: score " in output


def test_the_seed_of_a_command_decides_the_weights_that_a_training_starts_from(sample_root: Path) -> None:
    model = ["--model=CCL", "--model.backbone=mobilenetv3_small_100", "--model.pre_trained=false"]
    command = ["fit", *model, "--data=MultiCategory", f"--data.root={sample_root}"]
    first, again, other = (
        AnomalibCLI([*command, f"--seed_everything={seed}"], run=False).model.model.projections[0][0].weight
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_help_explains_the_constructor_arguments(tmp_path: Path) -> None:
    output = " ".join(run(tmp_path, "fit", "--model.help=CCL").split())
    for argument, text in {
        "local_weight": "Weight of the local contrastive loss; 0 switches it off.",
        "global_weight": "Weight of the global contrastive loss; 0 switches it off.",
        "tiles": "Rows and columns of tiles that large images are cut into, each of image_size",
        "recipe": 'Options that belong together: "paper", the default, is the paper\'s method; "recommended"',
        "temperature": "Temperature of both contrastive losses, greater than 0.",
        "num_negatives": "Images of other classes that each image is contrasted with",
        "losses": 'or "released", what the authors\' released code computes, for comparison only.',
        "class_labels": "Where the class of a training image comes from",
        "n_pseudo_classes": 'Number of pseudo-classes, at most that of the training images, or "auto"',
        "backbone": "Name of a convolutional timm model for the teacher; the checkpoint's, else wide_resnet50_2.",
        "backbone_weights": "file with the teacher's weights instead.",
    }.items():
        assert argument in output
        assert text in output


def test_benchmark_collects_ccl_and_reverse_distillation_in_one_csv(sample_root: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "configs/benchmark/sample.yaml").read_text())
    for model in config["benchmark"]["model"]["grid"]:
        model["init_args"]["pre_trained"] = False
    two = {"categories": ["brick", "retina"], "max_epochs": 1, "num_workers": 0}
    config["benchmark"]["data"]["init_args"].update(root=str(sample_root), **two)
    (tmp_path / "benchmark.yaml").write_text(yaml.safe_dump(config))
    run(tmp_path, "benchmark", "--config=benchmark.yaml")
    (results,) = (tmp_path / "runs/benchmark").glob("*/results.csv")
    rows = list(csv.DictReader(results.open()))
    assert [row["model.class_path"] for row in rows] == ["CCL", "ReverseDistillation"]
    assert all(0 < float(row["mean_pixel_AUROC"]) < 1 for row in rows)
    (categories,) = (tmp_path / "runs/benchmark").glob("*categories.csv")
    frame = pd.read_csv(categories)
    assert frame.groupby("model").size().to_dict() == {"CCL": 3, "ReverseDistillation": 3}
    means = frame[frame["category"] == "mean"].set_index("model")["mean_pixel_AUROC".removeprefix("mean_")]
    for row in rows:
        assert float(row["mean_pixel_AUROC"]) == pytest.approx(means[row["model.class_path"]], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.categories=[brik]"], "error: category 'brik' not found under"),
        (["--data.dataset=MVTecADD"], "error: dataset 'MVTecADD' is unknown; choose one of AutoVI"),
        (["--model.backbone_weights=absent.pth"], "error: backbone weights not found: absent.pth"),
        (["--model.backbone=vit_tiny_patch16_224"], "error: backbone 'vit_tiny_patch16_224' is a vision transformer"),
        ([f"--default_root_dir={__file__}/results"], "error: results cannot be written: [Errno 20] Not a directory"),
    ],
)
def test_bad_arguments_end_with_one_message_and_no_traceback(
    arguments: list[str], message: str, sample_root: Path, tmp_path: Path
) -> None:
    output = run(tmp_path, "train", *MODEL, *data(sample_root), *TRAINER, *arguments, code=1)
    assert message in output
    assert "Traceback" not in output


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_ends_training_with_its_path_and_no_traceback(
    workers: int, make_category: Callable[..., Path], tmp_path: Path
) -> None:
    for name in ("bolt", "nut"):
        folder = make_category(tmp_path / "data", name)
    broken = folder / "train/good/000.png"
    broken.write_bytes(broken.read_bytes()[:100])
    output = run(tmp_path, "train", *MODEL, *data(tmp_path / "data"), *TRAINER, f"--data.num_workers={workers}", code=1)
    assert output.splitlines()[-1].startswith("error: ")
    assert str(broken) in output.splitlines()[-1]
    assert "Traceback" not in output
    said = (tmp_path / "results/CCL/MultiCategory/v0/log.txt").read_text(encoding="utf-8")
    assert "Initializing CCL model" in said
    assert "Traceback" in said


def test_unreadable_images_are_left_out_of_training_and_report_where_asked_for(
    make_category: Callable[..., Path], tmp_path: Path
) -> None:
    for name in ("bolt", "nut"):
        folder = make_category(tmp_path / "data", name)
    (folder / "train/good/000.png").write_text("no image")
    truncated = folder / "test/bad/001.png"
    truncated.write_bytes(truncated.read_bytes()[:1000])
    output = run(tmp_path, "train", *MODEL, *data(tmp_path / "data"), *TRAINER, "--data.skip_corrupt=true")
    assert "Skipped image" in output
    frame = pd.read_csv(tmp_path / "results/CCL/MultiCategory/latest/categories.csv", index_col="category")
    assert frame["anomalous_images"].to_dict() == {"bolt": 2, "nut": 1, "mean": 3}
