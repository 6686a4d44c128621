"""The report, from real runs of anomalib's Engine with a model of anomalib's own."""

import csv
import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data import MVTecAD, PredictDataset
from anomalib.engine import Engine
from anomalib.models import Padim, ReverseDistillation
from anomalib.post_processing import PostProcessor
from lightning.pytorch import Callback
from parsed_page import ParsedPage
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.utils.data import DataLoader

from anomalib_ccl.data import MultiCategory
from anomalib_ccl.metrics.category import FIGURES
from anomalib_ccl.reports.mistakes import EACH
from anomalib_ccl.reports.report import Report

MEANS = {f"mean_{name}" for name in FIGURES}
# Padim does not recognise the class of an image.
PADIMS_FIGURES = [name for name in FIGURES if name != "class_accuracy"]


@pytest.fixture(autouse=True, scope="module")
def _only_the_callbacks_given() -> Iterator[None]:
    """Whether the plug-in is installed or not, its callbacks come from these tests."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("ANOMALIB_CCL_DISABLE", "1")
        monkeypatch.setenv("COLUMNS", "100")
        yield


class RawPredictions(Callback):
    """Keeps what the model gave for each image, before the post-processor changed it."""

    def __init__(self) -> None:
        self.rows: list[tuple] = []

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        fields = (batch.pred_score.clone(), batch.gt_label, batch.anomaly_map.clone(), batch.gt_mask)
        self.rows += zip(batch.image_path, *fields, strict=True)

    def of(self, category: str) -> tuple[np.ndarray, ...]:
        chosen = [row[1:] for row in self.rows if f"/{category}/" in row[0]]
        return tuple(torch.stack(column).flatten().numpy() for column in zip(*chosen, strict=True))


class Break(Callback):
    """Breaks off before the third batch, and keeps what is in the file by then."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_test_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *args: Any) -> None:
        if batch_idx == 2:
            self.rows = read(Path(trainer.default_root_dir))
            raise self.error


def make_engine(root: Path, *callbacks: Callback, **arguments: Any) -> Engine:
    return Engine(
        callbacks=[Report(), *callbacks],
        default_root_dir=root,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"devices": 1, **arguments},
    )


def make_data(root: Path, **arguments: Any) -> MultiCategory:
    arguments = {"val_split_mode": "same_as_test", **arguments}
    return MultiCategory(root=root, train_batch_size=4, eval_batch_size=3, num_workers=0, **arguments)


def train(engine: Engine, data: Any, **arguments: Any) -> Padim:
    """The same model, with the same weights, each time."""
    torch.manual_seed(0)
    size = Padim.configure_pre_processor(image_size=(32, 32))
    arguments = {"pre_processor": size, "visualizer": False, **arguments}
    model = Padim(backbone="resnet18", layers=["layer1"], n_features=16, pre_trained=False, **arguments)
    engine.fit(model, datamodule=data)
    return model


def folder_of(engine: Engine) -> Path:
    return Path(engine.trainer.default_root_dir)


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, make_category: Callable[..., Path]) -> Path:
    """Three categories with equal file names; ``cable`` has no defective image."""
    root = tmp_path_factory.mktemp("data")
    make_category(root, "bottle", good=4, bad=3)
    make_category(root, "cable", good=2, bad=0)
    make_category(root, "wood", good=3, bad=5)
    return root


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What one test predicted, printed, logged and wrote, of a model whose post-processor cuts off many scores."""
    raw = RawPredictions()
    engine, data = make_engine(tmp_path_factory.mktemp("run"), raw), make_data(root)
    model = train(engine, data, post_processor=PostProcessor(image_sensitivity=0.8), visualizer=True)
    for name in ("image", "pixel"):
        low, high = (getattr(model.post_processor, f"{name}_{end}") for end in ("min", "max"))
        # Whatever the noise in the images, both verdicts occur.
        getattr(model.post_processor, f"_{name}_threshold").copy_((low + high) / 2)
        high.copy_(low + 0.1 * (high - low))
    with redirect_stdout(io.StringIO()) as printed:
        (logged,) = engine.test(model, datamodule=data)
    folder = folder_of(engine)
    return SimpleNamespace(
        raw=raw,
        model=model,
        folder=folder,
        printed=printed.getvalue(),
        logged=logged,
        report=pd.read_csv(folder / "categories.csv"),
        predictions=pd.read_csv(folder / "predictions.csv", keep_default_na=False, dtype=str),
    )


def test_files_have_a_row_for_each_category_and_each_image(run: SimpleNamespace) -> None:
    report, rows = run.report, run.predictions
    assert report["category"].tolist() == ["bottle", "cable", "wood", "mean"]
    assert report["normal_images"].tolist() == [4, 2, 3, 9]
    assert report["anomalous_images"].tolist() == [3, 0, 5, 8]
    assert report.columns.tolist()[3:] == list(FIGURES)
    assert rows.columns.tolist() == ["path", "category", "product", "score", "threshold", "verdict", "defective"]
    assert rows["path"].nunique() == len(rows) == 17
    assert (rows["product"] == "").all()  # which Padim does not recognise
    assert (rows["category"] == rows["path"].map(lambda path: Path(path).parts[-4])).all()
    assert (rows["defective"] == rows["path"].str.contains("/bad/").map(str)).all()


def test_mean_is_logged_and_leaves_out_what_a_category_lacks(run: SimpleNamespace) -> None:
    figures = run.report.set_index("category")[list(FIGURES)]
    assert figures.columns[figures.loc["cable"].notna()].tolist() == ["false_alarms"]
    mean = figures.iloc[:3].mean()
    logged = {name: run.logged[f"mean_{name}"] for name in FIGURES}
    for found in (logged, figures.loc["mean"].to_dict()):
        assert found == pytest.approx(mean.to_dict(), abs=1e-6, nan_ok=True)
    assert "cable has no defective test image" in run.printed


def test_rankings_are_those_of_the_scores_before_the_post_processor_cuts_them_off(run: SimpleNamespace) -> None:
    report = run.report.set_index("category")
    assert (run.predictions["score"].astype(float).isin([0, 1])).mean() > 0.5
    for category in ("bottle", "wood"):
        score, label, anomaly_map, mask = run.raw.of(category)
        assert report.loc[category, "image_AUROC"] == pytest.approx(roc_auc_score(label, score), abs=1e-9)
        assert report.loc[category, "image_AP"] == pytest.approx(average_precision_score(label, score), abs=1e-9)
        assert report.loc[category, "pixel_AUROC"] == pytest.approx(roc_auc_score(mask, anomaly_map), abs=1e-3)
        assert report.loc[category, "pixel_AP"] == pytest.approx(average_precision_score(mask, anomaly_map), abs=1e-3)


def test_false_alarms_and_missed_are_those_of_the_rows(run: SimpleNamespace) -> None:
    rows, report = run.predictions, run.report.set_index("category")
    assert ((rows["score"].astype(float) > rows["threshold"].astype(float)) == (rows["verdict"] == "anomalous")).all()
    assert rows["verdict"].nunique() == 2
    for category, own in rows.groupby("category"):
        for figure, defective, wrong in (("false_alarms", "False", "anomalous"), ("missed", "True", "normal")):
            verdicts = own.loc[own["defective"] == defective, "verdict"]
            expected = (verdicts == wrong).mean() if len(verdicts) else np.nan
            assert report.loc[category, figure] == pytest.approx(expected, nan_ok=True)


def test_table_and_places_are_printed_once(run: SimpleNamespace) -> None:
    assert run.printed.count("Test results per category") == 1
    lines = [line.split() for line in run.printed.splitlines()]
    for row in run.report.to_dict("records"):
        images = str(row["normal_images"] + row["anomalous_images"])
        figures = ["-" if np.isnan(row[name]) else f"{100 * row[name]:.1f}" for name in PADIMS_FIGURES]
        assert [row["category"], images, *figures] in lines
    files = {"Categories": "categories.csv", "Predictions": "predictions.csv", "Heatmaps": "images"}
    for what, name in {**files, "Report": "report.html"}.items():
        assert run.printed.count(f"{what}: {run.folder / name}\n") == 1


def test_page_of_any_model_shows_its_mistakes_and_links_no_pictures_of_other_names(run: SimpleNamespace) -> None:
    page = ParsedPage(run.folder / "report.html")
    rows = run.predictions
    wrong = rows[(rows["defective"] == "True") != (rows["verdict"] == "anomalous")]
    assert len(wrong) > 0
    assert wrong.groupby(["category", "defective"]).size().max() <= EACH
    linked = [str(file) for name, (_, file) in page.pictures.items() if name.startswith("Photograph")]
    assert set(linked) <= set(wrong["path"])
    assert sum(tag == "figure" for tag, _ in page.tags) == len(wrong)
    assert all(file is None for name, (_, file) in page.pictures.items() if not name.startswith("Photograph"))
    assert page.words.count("No defective images were tested.") == 1  # of the cable


def test_second_test_of_one_engine_reports_the_same_and_a_prediction_has_the_same_rows(
    run: SimpleNamespace, root: Path, tmp_path: Path
) -> None:
    engine, data = make_engine(tmp_path), make_data(root)
    for _ in range(2):
        (logged,) = engine.test(run.model, datamodule=data)
        pd.testing.assert_frame_equal(pd.read_csv(folder_of(engine) / "categories.csv"), run.report)
        # float32, summed in another order; anomalib's own metrics still hold what a run that broke off has left there
        means, expected = ({name: figures[name] for name in MEANS} for figures in (logged, run.logged))
        assert means == pytest.approx(expected, rel=1e-4, nan_ok=True)
    for name in ("categories.csv", "report.html"):
        (folder_of(engine) / name).unlink()
    engine.predict(run.model, datamodule=data)
    assert read(folder_of(engine)) == run.predictions.to_dict("records")
    assert [path.name for path in folder_of(engine).iterdir() if path.is_file()] == ["predictions.csv"]


@pytest.mark.parametrize(
    ("error", "raised"), [(RuntimeError("broken off"), RuntimeError), (KeyboardInterrupt(), SystemExit)]
)
def test_rows_of_all_batches_before_a_crash_are_kept(
    run: SimpleNamespace, root: Path, tmp_path: Path, error: BaseException, raised: type[BaseException]
) -> None:
    broken = Break(error)
    engine, data = make_engine(tmp_path, broken), make_data(root)
    with pytest.raises(raised):
        engine.test(run.model, datamodule=data)
    assert len(broken.rows) == 6  # they were there before anybody could have tidied up
    assert read(folder_of(engine)) == broken.rows == run.predictions.iloc[:6].to_dict("records")
    assert not (folder_of(engine) / "categories.csv").exists()


def test_images_that_are_not_those_of_the_datamodule_are_left_to_anomalib(
    run: SimpleNamespace, root: Path, tmp_path: Path
) -> None:
    engine, data = make_engine(tmp_path), make_data(root)
    engine.test(run.model, datamodule=data)  # which the trainer keeps
    shutil.rmtree(tmp_path)
    dataset = data.test_data.subsample([0, 1])
    loader = DataLoader(dataset, batch_size=2, collate_fn=dataset.collate_fn)
    (logged,) = engine.test(run.model, dataloaders=loader)
    engine.predict(run.model, dataset=PredictDataset(root / "bottle" / "train" / "good", image_size=(32, 32)))
    assert not MEANS & set(logged)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in {".csv", ".html"}]


@pytest.mark.parametrize("always", [False, True])
def test_other_datamodules_and_models_are_left_to_anomalib(root: Path, tmp_path: Path, always: bool) -> None:
    engine = make_engine(tmp_path, Report(always))
    data = MVTecAD(root=root, category="bottle", num_workers=0)
    (logged,) = engine.test(train(engine, data), datamodule=data)
    assert not MEANS & set(logged)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in {".csv", ".html"}]


def test_means_have_the_same_keys_where_there_are_no_masks(run: SimpleNamespace, root: Path, tmp_path: Path) -> None:
    folders = {"normal_dir": "train/good", "abnormal_dir": "test/bad", "normal_test_dir": "test/good"}
    data = make_data(root, dataset="Folder", categories=["bottle", "wood"], dataset_args=folders)
    (logged,) = make_engine(tmp_path).test(run.model, datamodule=data)
    assert {name for name in logged if name.startswith("mean_")} == MEANS
    assert np.isnan([logged[f"mean_{name}"] for name in FIGURES if name.startswith("pixel")]).all()
    assert logged["mean_image_AUROC"] == pytest.approx(run.logged["mean_image_AUROC"])


def test_two_processes_report_what_one_does(root: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    # Padim insists on one device.
    model = ReverseDistillation(
        backbone="resnet18",
        pre_trained=False,
        pre_processor=ReverseDistillation.configure_pre_processor(image_size=(64, 64)),
        visualizer=False,
    )
    reports, logged, shown = [], [], []
    # 17 images: the second process gets one of them twice.
    for strategy, devices in (("auto", 1), ("ddp_fork", 2)):
        engine = make_engine(tmp_path / strategy, strategy=strategy, devices=devices)
        logged += engine.test(model, datamodule=make_data(root))
        reports.append(pd.read_csv(folder_of(engine) / "categories.csv"))
        assert engine.trainer.world_size == devices
        paths = pd.read_csv(folder_of(engine) / "predictions.csv")["path"]
        assert len(paths) == paths.nunique() == 17
        tags = ParsedPage(folder_of(engine) / "report.html").tags
        shown.append([values for tag, values in tags if tag == "a"])
    assert shown[0] == shown[1]
    assert len(shown[0]) > 3  # more than the products of the table
    pd.testing.assert_frame_equal(*reports, atol=1e-4, rtol=0)
    one, two = ({name: figures[name] for name in MEANS} for figures in logged)
    assert two == pytest.approx(one, abs=1e-4, nan_ok=True)
