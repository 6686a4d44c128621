"""What is kept for each image of a test or a prediction, from real runs of anomalib's Engine and its commands."""

import csv
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.cli import AnomalibCLI
from anomalib.data import ImageBatch, ImageItem, PredictDataset
from anomalib.engine import Engine
from anomalib.visualization import ImageVisualizer
from lightning.pytorch import Callback, Trainer
from PIL import Image
from torch.utils.data import DataLoader

from anomalib_ccl import CCL, MultiCategory
from anomalib_ccl.data.ranges import PixelRanges
from anomalib_ccl.metrics import ImageReport
from anomalib_ccl.metrics.heatmaps import Heatmaps

COLUMNS = ["path", "category", "product", "score", "threshold", "verdict", "defective"]
NAMES = ["a.png", "a.bmp", 'b, "c"\nd.png', "line 1/ü.png", "line 2/ü.png", "line 2/deep/ü.png"]

PREDICT = [
    "predict",
    "--model=CCL",
    "--model.backbone=mobilenetv3_small_100",
    "--model.pre_trained=false",
    "--model.image_size=[64,64]",
    "--trainer.accelerator=cpu",
    "--trainer.callbacks+=anomalib_ccl.metrics.ImageReport",
]


@pytest.fixture(autouse=True, scope="module")
def _only_the_callbacks_given() -> Iterator[None]:
    """Whether the plugin is installed or not, its callbacks come from these tests."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("ANOMALIB_CCL_DISABLE", "1")
        yield


class Break(Callback):
    """Breaks off before the third batch, and keeps what is in the file by then."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_predict_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int, *args: Any) -> None:
        if batch_idx == 2:
            self.rows = read(Path(trainer.default_root_dir))
            raise self.error


class BreaksOnSome(ImageVisualizer):
    def visualize(self, predictions: Any) -> Any:
        if Path(predictions.image_path).stem == "ü":
            raise RuntimeError("out of colours")
        return super().visualize(predictions)


class FullDisk(ImageVisualizer):
    def visualize(self, predictions: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def make_engine(root: Path, *callbacks: Callback, **arguments: Any) -> Engine:
    arguments = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, **arguments}
    return Engine(callbacks=[ImageReport(), *callbacks], default_root_dir=root, max_epochs=1, **arguments)


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def folder_of(engine: Engine) -> Path:
    return Path(engine.trainer.default_root_dir)


def pictures(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def batches(folder: Path) -> DataLoader:
    dataset = PredictDataset(folder)
    return DataLoader(dataset, batch_size=2, collate_fn=dataset.collate_fn)


@pytest.fixture(scope="module")
def run(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A trained model, its first test, and then a prediction of the same images."""
    torch.manual_seed(0)
    engine = make_engine(tmp_path_factory.mktemp("run"))
    model = CCL("mobilenetv3_small_100", pre_trained=False, image_size=(64, 64))
    data = MultiCategory(root=sample_root, train_batch_size=8, num_workers=0)
    engine.fit(model, datamodule=data)
    engine.test(model, datamodule=data)
    folder = folder_of(engine)
    tested, drawn = read(folder), pictures(folder / "images")
    predicted = engine.predict(model, datamodule=data)
    checkpoint = folder / "weights/lightning/model.ckpt"
    return SimpleNamespace(
        model=model, data=data, folder=folder, rows=tested, drawn=drawn, predicted=predicted, checkpoint=checkpoint
    )


@pytest.fixture
def nested(sample_root: Path, tmp_path: Path) -> Path:
    """Six images whose names and folders differ only in some part of their paths."""
    folder = tmp_path / "nested"
    with Image.open(sample_root / "brick/test/good/000.png") as image:
        for name in NAMES:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            image.convert("RGB").save(folder / name)
    return folder


def test_every_test_image_has_a_row_with_what_is_known_and_what_was_predicted(
    run: SimpleNamespace, sample_root: Path
) -> None:
    truth = {str(path): path.parent.name != "good" for path in sample_root.glob("*/test/*/*.png")}
    assert list(run.rows[0]) == COLUMNS
    assert sorted(row["path"] for row in run.rows) == sorted(truth)
    products = set(run.data.category_names) | {"unknown"}
    for row in run.rows:
        assert row["category"] == Path(row["path"]).parts[-4]
        assert row["defective"] == str(truth[row["path"]])
        assert row["product"] in products


def test_rows_are_what_the_engine_returns_and_the_verdict_is_that_of_score_and_threshold(run: SimpleNamespace) -> None:
    rows = {row["path"]: row for row in run.rows}
    for batch in run.predicted:
        for path, score, label, told in zip(
            batch.image_path,
            batch.pred_score.flatten().tolist(),
            batch.pred_label.flatten(),
            batch.explanation,
            strict=True,
        ):
            row = rows[path]
            assert float(row["score"]) == pytest.approx(score, abs=1e-6)
            assert row["product"] == told
            assert row["verdict"] == ("anomalous" if label else "normal")
            assert bool(label) == (float(row["score"]) > float(row["threshold"]))
    assert {row["threshold"] for row in run.rows} == {"0.5"}


def test_every_test_image_has_a_heatmap_under_its_category_and_defect(run: SimpleNamespace, sample_root: Path) -> None:
    expected = {f"{path.parts[-4]}/{path.parts[-2]}/{path.name}" for path in sample_root.glob("*/test/*/*.png")}
    assert run.drawn == expected


def test_a_later_run_in_the_same_folder_keeps_the_results_of_the_earlier_one(run: SimpleNamespace) -> None:
    assert read(run.folder / "earlier/1") == run.rows
    assert pictures(run.folder / "earlier/1/images") == pictures(run.folder / "images") == run.drawn
    assert [row["path"] for row in read(run.folder)] == [row["path"] for row in run.rows]


def test_images_of_nested_folders_have_rows_and_heatmaps_of_their_own(
    run: SimpleNamespace, nested: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = make_engine(tmp_path)
    engine.predict(run.model, dataset=PredictDataset(nested))
    folder = folder_of(engine)
    rows = read(folder)
    assert {row["path"] for row in rows} == {str(nested / name) for name in NAMES}
    assert all(row["category"] == row["defective"] == "" and row["score"] and row["verdict"] for row in rows)
    assert pictures(folder / "images") == set(NAMES)
    printed = capsys.readouterr().out
    assert printed.count(f"Predictions: {folder / 'predictions.csv'}\n") == 1
    assert printed.count(f"Heatmaps: {folder / 'images'}\n") == 1


def test_predict_command_keeps_the_path_in_the_folder_even_if_all_images_are_in_one_inside_it(
    run: SimpleNamespace, nested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(nested, tmp_path / "day/line 3/nested")
    monkeypatch.chdir(tmp_path)
    cli = AnomalibCLI(args=[*PREDICT, f"--ckpt_path={run.checkpoint}", "--data=day"])
    folder = tmp_path / "results/CCL/latest"
    assert pictures(folder / "images") == {f"line 3/nested/{name}" for name in NAMES}
    assert len(read(folder)) == len(NAMES)
    assert cli.engine.trainer.predict_loop.predictions == []  # which the command would throw away


@pytest.mark.parametrize(
    ("error", "raised"), [(RuntimeError("broken off"), RuntimeError), (KeyboardInterrupt(), SystemExit)]
)
def test_rows_and_heatmaps_of_all_batches_before_a_crash_are_kept(
    run: SimpleNamespace, nested: Path, tmp_path: Path, error: BaseException, raised: type[BaseException]
) -> None:
    broken = Break(error)
    engine = make_engine(tmp_path, broken)
    with pytest.raises(raised):
        engine.predict(run.model, dataloaders=batches(nested))
    assert len(broken.rows) == 4  # they were there before anybody could have tidied up
    assert read(folder_of(engine)) == broken.rows
    assert len(pictures(folder_of(engine) / "images")) == 4
    assert run.model.visualizer in engine.trainer.callbacks


def test_a_picture_that_cannot_be_drawn_costs_a_warning_and_not_the_run(
    run: SimpleNamespace,
    nested: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run.model, "visualizer", BreaksOnSome())
    engine = make_engine(tmp_path)
    engine.predict(run.model, dataloaders=batches(nested))
    assert len(read(folder_of(engine))) == 6
    assert pictures(folder_of(engine) / "images") == set(NAMES[:3])
    messages = [record.message for record in caplog.records if "drawn" in record.message]
    first = nested / "line 1/ü.png"
    assert messages == [
        f"The heatmap of {first} cannot be drawn: out of colours. The run goes on.",
        "3 heatmaps could not be drawn.",
    ]


def test_a_full_disk_ends_the_run_with_its_place_and_the_way_out(
    run: SimpleNamespace, nested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.model, "visualizer", FullDisk())
    engine = make_engine(tmp_path)
    place = re.escape(str(tmp_path / "CCL/latest/images"))
    message = (
        rf"results cannot be written to {place}: No space left on device; free some space, or .* --default_root_dir"
    )
    with pytest.raises(OSError, match=message):
        engine.predict(run.model, dataloaders=batches(nested))
    assert len(read(folder_of(engine))) == 2


def test_without_a_visualizer_there_are_rows_only(
    run: SimpleNamespace,
    nested: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run.model, "visualizer", None)
    engine = make_engine(tmp_path)
    engine.predict(run.model, dataloaders=batches(nested))
    assert len(read(folder_of(engine))) == 6
    assert not (folder_of(engine) / "images").exists()
    assert "Heatmaps" not in capsys.readouterr().out


def test_heatmaps_in_a_folder_of_photographs_take_the_place_of_none(
    run: SimpleNamespace, nested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs = {name: (nested / name).read_bytes() for name in NAMES}
    settings = {"fields": ["image"], "overlay_fields": [("image", ["anomaly_map"])], "text_config": {"enable": False}}
    monkeypatch.setattr(run.model, "visualizer", ImageVisualizer(output_dir=nested, field_size=(40, 30), **settings))
    loader = batches(nested)
    for _ in range(2):
        make_engine(tmp_path).predict(run.model, dataloaders=loader)
    assert {name: (nested / name).read_bytes() for name in NAMES} == photographs
    assert len(pictures(nested)) == 3 * len(NAMES)
    with Image.open(nested / "line 2/ü-2.png") as picture:
        assert picture.size == (80, 30)  # two fields, and no words


def test_a_trainer_in_the_current_folder_leaves_the_photographs_there_alone(
    run: SimpleNamespace, nested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(nested, tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    photographs = {name: Path("images", name).read_bytes() for name in NAMES}
    trainer = Trainer(callbacks=[ImageReport()], accelerator="cpu", logger=False, enable_progress_bar=False)
    loader = batches(tmp_path / "images")
    for _ in range(2):
        trainer.predict(run.model, loader)
    assert {name: Path("images", name).read_bytes() for name in NAMES} == photographs
    assert pictures(tmp_path / "earlier/1") == {"predictions.csv"}


def test_product_score_and_verdict_are_written_under_the_picture(run: SimpleNamespace) -> None:
    plain, named = (Image.open(run.folder / "images" / name) for name in ("brick/good/000.png", "tissue/good/000.png"))
    assert plain.width == named.width > 4 * 256  # a colour bar besides
    assert plain.height == named.height > 256
    strips = [picture.crop((0, 256, picture.width, picture.height)).convert("L") for picture in (plain, named)]
    rows = {row["path"]: row for row in run.rows}
    scores = {
        next(row["score"] for path, row in rows.items() if path.endswith(f"{name}/test/good/000.png"))
        for name in ("brick", "tissue")
    }
    assert (strips[0].tobytes() != strips[1].tobytes()) == (len(scores) == 2)
    assert all(strip.getextrema() == (0, 255) for strip in strips)


def test_images_without_paths_are_numbered(run: SimpleNamespace, tmp_path: Path) -> None:
    images = torch.rand(3, 3, 64, 64)
    loader = DataLoader(images, batch_size=2, collate_fn=lambda items: ImageBatch(image=torch.stack(items)))
    engine = make_engine(tmp_path)
    engine.predict(run.model, dataloaders=loader)
    assert [row["path"] for row in read(folder_of(engine))] == ["", "", ""]
    assert pictures(folder_of(engine) / "images") == {"000000.png", "000001.png", "000002.png"}


def test_a_deep_image_is_drawn_as_the_model_saw_it(tmp_path: Path) -> None:
    grey = np.linspace(0, 4095, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(grey).save(tmp_path / "12 bits in 16.png")
    heatmaps = Heatmaps([ImageVisualizer(fields=["image"], overlay_fields=[], text_config={"enable": False})], tmp_path)
    item = ImageItem(image=torch.zeros(3, 64, 64), image_path=str(tmp_path / "12 bits in 16.png"))
    heatmaps.draw(item, Path("drawn.png"), "", PixelRanges(integers=(0, 4095)))
    drawn = np.asarray(Image.open(tmp_path / "drawn.png").convert("L"))
    assert drawn.min() < 5
    assert drawn.max() > 250
    assert 120 < drawn.mean() < 135
