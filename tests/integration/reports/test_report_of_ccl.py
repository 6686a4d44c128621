"""What a test and a prediction of CCL leave: products, verdicts and heatmaps, on any data."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data import ImageBatch, PredictDataset
from anomalib.engine import Engine
from anomalib.models import Padim
from anomalib.post_processing import PostProcessor
from anomalib.visualization import ImageVisualizer
from lightning import seed_everything
from PIL import Image, ImageColor
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader

from anomalib_ccl import CCL, MultiCategory
from anomalib_ccl.errors import InputError
from anomalib_ccl.reports.heatmaps import CONTOUR, RIGHT, WRONG, CCLVisualizer
from anomalib_ccl.reports.report import Report, _rate

NAMES = ["a.png", "a.bmp", 'b, "c"\nd.png', "line 1/ü.png", "line 2/ü.png", "line 2/deep/ü.png"]
PLACES = {f"{name}.png" if name.endswith("bmp") else name for name in NAMES}


@pytest.fixture(autouse=True, scope="module")
def _only_the_callbacks_of_the_model() -> Iterator[None]:
    """Whether the plug-in is installed or not, the report is the model's own."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("ANOMALIB_CCL_DISABLE", "1")
        yield


def make_engine(root: Path, *callbacks: Any, epochs: int = 4) -> Engine:
    arguments = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "enable_model_summary": False}
    return Engine(callbacks=list(callbacks), default_root_dir=root, max_epochs=epochs, **arguments)


def read(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "predictions.csv", dtype=str, keep_default_na=False)


def folder_of(engine: Engine) -> Path:
    return Path(engine.trainer.default_root_dir)


def pictures(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def run(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A trained model, its first test, and then a prediction of the same images."""
    seed_everything(0)
    # As the entry point gives it, too: that of the model takes its place.
    engine = make_engine(tmp_path_factory.mktemp("run"), Report())
    model = CCL("test_efficientnet", pre_trained=False, image_size=(64, 64))
    data = MultiCategory(root=sample_root, train_batch_size=8, num_workers=0)
    engine.fit(model, datamodule=data)
    (logged,) = engine.test(model, datamodule=data)
    folder = folder_of(engine)
    rows, drawn = read(folder), pictures(folder / "images")
    predicted = engine.predict(model, datamodule=data)
    return SimpleNamespace(
        model=model,
        data=data,
        folder=folder,
        engine=engine,
        logged=logged,
        report=pd.read_csv(folder / "categories.csv").set_index("category"),
        rows=rows,
        drawn=drawn,
        predicted=predicted,
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


def test_the_model_brings_the_only_report_which_knows_the_rate_that_was_asked_for(run: SimpleNamespace) -> None:
    callbacks = run.engine.trainer.callbacks
    (report,) = [x for x in callbacks if isinstance(x, Report)]
    assert report.always
    assert callbacks.index(report) < callbacks.index(run.model.post_processor)
    assert _rate(run.model) == 0.01
    assert _rate(CCL("tf_efficientnet_lite0", pre_trained=False, post_processor=PostProcessor())) is None


def test_every_test_image_has_a_row_with_what_is_known_and_what_was_predicted(
    run: SimpleNamespace, sample_root: Path
) -> None:
    truth = {str(path): path.parent.name != "good" for path in sample_root.glob("*/test/*/*.png")}
    assert sorted(run.rows["path"]) == sorted(truth)
    assert (run.rows["category"] == run.rows["path"].map(lambda path: Path(path).parts[-4])).all()
    assert (run.rows["defective"] == run.rows["path"].map(lambda path: str(truth[path]))).all()
    assert set(run.rows["product"]) <= {*run.model.class_names, "unknown"}
    assert set(run.rows["threshold"]) == {"0.5"}


def test_rows_are_what_the_engine_returns(run: SimpleNamespace) -> None:
    rows = run.rows.set_index("path")
    for batch in run.predicted:
        columns = (batch.image_path, batch.pred_score.flatten().tolist(), batch.pred_label.flatten(), batch.explanation)
        for path, score, label, product in zip(*columns, strict=True):
            row = rows.loc[path]
            assert float(row["score"]) == pytest.approx(score, abs=1e-6)
            assert row["product"] == product
            assert row["verdict"] == ("anomalous" if label else "normal")
            assert bool(label) == (float(row["score"]) > float(row["threshold"]))


def test_figures_are_those_of_the_rows_and_of_the_scores_that_are_not_cut_off(run: SimpleNamespace) -> None:
    rows = run.rows.assign(
        right=run.rows["product"] == run.rows["category"], anomalous=run.rows["verdict"] == "anomalous"
    )
    for category, own in rows.groupby("category"):
        figures, defective = run.report.loc[category], own["defective"] == "True"
        assert figures["class_accuracy"] == pytest.approx(own["right"].mean())
        assert figures["false_alarms"] == pytest.approx(own.loc[~defective, "anomalous"].mean())
        assert figures["missed"] == pytest.approx((~own.loc[defective, "anomalous"]).mean())
    model, scores = run.model.eval(), []
    with torch.no_grad():
        for batch in run.data.test_dataloader():
            found = model.model(model.pre_processor.transform(batch.image))
            scores += zip(batch.image_path, batch.gt_label.tolist(), found.pred_score.flatten().tolist(), strict=True)
    frame = pd.DataFrame(scores, columns=["path", "label", "score"])
    for category, own in frame.groupby(frame["path"].map(lambda path: Path(path).parts[-4])):
        assert run.report.loc[category, "image_AUROC"] == pytest.approx(roc_auc_score(own["label"], own["score"]))
    assert run.logged["mean_image_AUROC"] == pytest.approx(run.report["image_AUROC"].iloc[:-1].mean())


def test_every_test_image_has_a_heatmap_that_says_whether_the_verdict_was_right(run: SimpleNamespace) -> None:
    places = {f"{p.parts[-4]}/{p.parts[-2]}/{p.name}": p for p in map(Path, run.rows["path"])}
    assert run.drawn == set(places)
    rows = run.rows.set_index("path")
    for place, path in places.items():
        row = rows.loc[str(path)]
        with Image.open(run.folder / "images" / place) as picture:
            drawn = np.asarray(picture)
        right = (row["verdict"] == "anomalous") == (row["defective"] == "True")
        assert tuple(drawn[-1, 0]) == ImageColor.getrgb(RIGHT if right else WRONG)
        contour = (drawn[:256, :256] == ImageColor.getrgb(CONTOUR)).all(axis=-1)
        assert contour.any() == (row["defective"] == "True")
        with Image.open(path) as photograph:
            expected = np.asarray(photograph.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR))
        difference = np.abs(drawn[:256, :256].astype(int) - expected)[~contour]
        assert np.quantile(difference, 0.95) < 30  # it was drawn from 64 pixels


def test_images_of_nested_folders_have_rows_and_heatmaps_of_their_own(
    run: SimpleNamespace, nested: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = make_engine(tmp_path)
    for _ in range(2):  # the second overwrites the first
        engine.predict(run.model, dataset=PredictDataset(nested))
    folder = folder_of(engine)
    rows = read(folder)
    assert set(rows["path"]) == {str(nested / name) for name in NAMES}
    assert len(rows) == len(NAMES)
    assert (rows[["category", "defective"]] == "").all(axis=None)
    assert (rows["verdict"] != "").all()
    assert pictures(folder / "images") == PLACES
    printed = capsys.readouterr().out
    assert printed.count(f"Predictions: {folder / 'predictions.csv'}\n") == 2
    assert printed.count(f"Heatmaps: {folder / 'images'}\n") == 2


def test_heatmaps_never_take_the_place_of_photographs(
    run: SimpleNamespace, nested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.model, "visualizer", CCLVisualizer(output_dir=nested))
    photographs = {name: (nested / name).read_bytes() for name in NAMES}
    with pytest.raises(InputError, match="would overwrite the photograph; give the visualizer another output_dir"):
        make_engine(tmp_path).predict(run.model, dataset=PredictDataset(nested))
    assert {name: (nested / name).read_bytes() for name in NAMES} == photographs


def test_visualizer_of_the_users_is_theirs(
    run: SimpleNamespace, nested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.model, "visualizer", ImageVisualizer(output_dir=tmp_path / "mine"))
    engine = make_engine(tmp_path)
    engine.predict(run.model, dataset=PredictDataset(nested / "line 1"))
    assert pictures(tmp_path / "mine") == {"line 1/ü.png"}
    assert not (folder_of(engine) / "images").exists()


def test_another_model_on_the_same_trainer_is_left_to_anomalib(
    run: SimpleNamespace, nested: Path, tmp_path: Path
) -> None:
    engine = make_engine(tmp_path)
    engine.predict(run.model, dataset=PredictDataset(nested))
    os.remove(folder_of(engine) / "predictions.csv")  # noqa: PTH107
    padim = Padim(backbone="resnet18", pre_trained=False, visualizer=False)
    padim.model.gaussian.mean, padim.model.gaussian.inv_covariance = (
        torch.zeros(100, 4096),
        torch.eye(100).repeat(4096, 1, 1),
    )
    engine.predict(padim, dataset=PredictDataset(nested / "line 1"))
    assert not list(tmp_path.rglob("predictions.csv"))


def test_images_without_paths_are_numbered(run: SimpleNamespace, tmp_path: Path) -> None:
    loader = DataLoader(torch.rand(3, 3, 64, 64), batch_size=2, collate_fn=lambda x: ImageBatch(image=torch.stack(x)))
    engine = make_engine(tmp_path)
    engine.predict(run.model, dataloaders=loader)
    assert read(folder_of(engine))["path"].tolist() == ["", "", ""]
    assert pictures(folder_of(engine) / "images") == {"0-00000-000.png", "0-00000-001.png", "0-00001-000.png"}
