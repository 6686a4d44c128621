"""The report and the heatmaps, from real runs of anomalib's Engine and of its benchmark job."""

from __future__ import annotations

import io
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data import MVTecAD, PredictDataset
from anomalib.engine import Engine
from anomalib.models import Padim, ReverseDistillation
from anomalib.pipelines.benchmark.job import BenchmarkJob
from anomalib.visualization import ImageVisualizer
from lightning.pytorch import Callback
from rich.console import Console
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.utils.data import DataLoader

from anomalib_ccl.data import MultiCategory
from anomalib_ccl.metrics import CategoryReport, ImageReport
from anomalib_ccl.metrics.category import FIGURES
from anomalib_ccl.metrics.table import report_table

MEANS = {f"mean_{name}" for name in FIGURES}
# Padim does not tell the class of an image.
PADIMS_FIGURES = [name for name in FIGURES if name != "class_accuracy"]


@pytest.fixture(autouse=True, scope="module")
def _only_the_callbacks_given(module_monkeypatch):
    """Whether the plugin is installed or not, its callbacks come from these tests."""
    module_monkeypatch.setenv("ANOMALIB_CCL_DISABLE", "1")
    module_monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture(scope="module")
def module_monkeypatch():
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield monkeypatch


class RawPredictions(Callback):
    """Keeps what the model gave for each image, before the post-processor changed it."""

    def __init__(self) -> None:
        self.rows: list[tuple] = []

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        fields = (batch.pred_score.clone(), batch.gt_label, batch.anomaly_map.clone(), batch.gt_mask)
        self.rows += zip(batch.image_path, *fields, strict=True)

    def of(self, category: str) -> tuple[np.ndarray, ...]:
        chosen = [row[1:] for row in self.rows if f"/{category}/" in row[0]]
        return tuple(torch.stack(column).flatten().numpy() for column in zip(*chosen, strict=True))


class Broken(Callback):
    def on_test_batch_start(self, *args, **kwargs) -> None:
        raise RuntimeError("broken off")


def make_engine(root: Path, *callbacks: Callback, **arguments) -> Engine:
    return Engine(
        callbacks=[CategoryReport(), ImageReport(), *callbacks],
        default_root_dir=root,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"devices": 1, **arguments},
    )


def make_model(**arguments) -> Padim:
    size = Padim.configure_pre_processor(image_size=(32, 32))
    return Padim(
        backbone="resnet18",
        layers=["layer1"],
        n_features=16,
        pre_trained=False,
        pre_processor=size,
        **arguments,
    )


def make_data(root: Path, **arguments) -> MultiCategory:
    return MultiCategory(
        root=root,
        train_batch_size=4,
        eval_batch_size=3,
        num_workers=0,
        val_split_mode="same_as_test",
        **arguments,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory, make_category) -> Path:
    """Three categories with equal file names; ``cable`` has no defective image."""
    root = tmp_path_factory.mktemp("data")
    make_category(root, "bottle", good=4, bad=3)
    make_category(root, "cable", good=2, bad=0)
    make_category(root, "wood", good=3, bad=5)
    return root


def train(engine: Engine, data: MultiCategory, **arguments) -> Padim:
    """The same model, with the same weights, each time."""
    torch.manual_seed(0)
    model = make_model(**arguments)
    engine.fit(model, datamodule=data)
    return model


def folder_of(engine: Engine) -> Path:
    return Path(engine.trainer.default_root_dir)


def heatmaps(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}


@pytest.fixture(scope="module")
def run(root, tmp_path_factory) -> SimpleNamespace:
    """What one test predicted, printed, logged and wrote."""
    raw = RawPredictions()
    engine, data = make_engine(tmp_path_factory.mktemp("run"), raw), make_data(root)
    model = train(engine, data)
    with redirect_stdout(io.StringIO()) as printed:
        (logged,) = engine.test(model, datamodule=data)
    folder = folder_of(engine)
    return SimpleNamespace(
        raw=raw,
        printed=printed.getvalue(),
        logged=logged,
        report=pd.read_csv(folder / "categories.csv"),
        heatmaps=heatmaps(folder / "images"),
        predictions=pd.read_csv(folder / "predictions.csv"),
    )


EXPECTED_HEATMAPS = {
    f"{category}/{kind}/{index:03}.png"
    for category, kind, count in (
        ("bottle", "good", 4),
        ("bottle", "bad", 3),
        ("cable", "good", 2),
        ("wood", "good", 3),
        ("wood", "bad", 5),
    )
    for index in range(count)
}


def test_file_has_a_row_for_each_category_and_the_mean(run):
    assert run.report["category"].tolist() == ["bottle", "cable", "wood", "mean"]
    assert run.report["normal_images"].tolist() == [4, 2, 3, 9]
    assert run.report["anomalous_images"].tolist() == [3, 0, 5, 8]
    assert run.report.columns.tolist()[3:] == list(FIGURES)


def test_figures_are_those_of_the_raw_predictions(run):
    report = run.report.set_index("category")
    for category in ("bottle", "wood"):
        score, label, anomaly_map, mask = run.raw.of(category)
        assert report.loc[category, "image_AUROC"] == pytest.approx(roc_auc_score(label, score), abs=1e-9)
        assert report.loc[category, "image_AP"] == pytest.approx(average_precision_score(label, score), abs=1e-9)
        assert report.loc[category, "pixel_AUROC"] == pytest.approx(roc_auc_score(mask, anomaly_map), abs=1e-3)
        assert report.loc[category, "pixel_AP"] == pytest.approx(average_precision_score(mask, anomaly_map), abs=1e-3)


def test_category_without_a_defective_image_has_no_figures_and_no_part_in_the_mean(run):
    report = run.report.set_index("category")[list(FIGURES)]
    assert report.loc["cable"].isna().all()
    assert report.loc["mean"].tolist() == pytest.approx(
        ((report.loc["bottle"] + report.loc["wood"]) / 2).tolist(), nan_ok=True
    )


def test_logged_means_are_those_of_the_file(run):
    mean = run.report.iloc[-1]
    logged = {name: value for name, value in run.logged.items() if name.startswith("mean_")}
    assert logged == pytest.approx({f"mean_{name}": mean[name] for name in FIGURES}, abs=1e-6, nan_ok=True)


def test_table_is_printed_once_and_has_the_figures_of_the_file(run):
    assert run.printed.count("Test results per category") == 1
    lines = [line.split() for line in run.printed.splitlines()]
    for row in run.report.to_dict("records"):
        images = str(row["normal_images"] + row["anomalous_images"])
        figures = ["-" if np.isnan(row[name]) else f"{100 * row[name]:.1f}" for name in PADIMS_FIGURES]
        assert [row["category"], images, *figures] in lines


def test_table_fits_an_ordinary_terminal_where_data_sets_are_joined():
    counts = {"normal_images": 600, "anomalous_images": 1200}
    rows = [
        {"category": name, **counts, **dict.fromkeys(FIGURES, 1.0), "class_accuracy": np.nan}
        for name in ("MVTecAD2/fruit_jelly", "mean")
    ]
    with redirect_stdout(io.StringIO()) as printed:
        Console(width=80).print(report_table(pd.DataFrame(rows)))
    assert ["MVTecAD2/fruit_jelly", "1800", *["100.0"] * 7] in [x.split() for x in printed.getvalue().splitlines()]


def test_heatmaps_of_equal_file_names_do_not_overwrite_each_other(run):
    assert run.heatmaps == EXPECTED_HEATMAPS


def test_rows_of_images_have_all_but_the_product_which_padim_does_not_tell(run):
    frame = run.predictions
    assert frame["product"].isna().all()
    assert (frame["category"] == frame["path"].map(lambda path: Path(path).parts[-4])).all()
    assert (frame["defective"] == frame["path"].str.contains("/bad/")).all()
    assert ((frame["score"] > frame["threshold"]) == (frame["verdict"] == "anomalous")).all()


def test_prediction_writes_its_heatmaps_where_a_test_does(root, tmp_path):
    engine, data = make_engine(tmp_path), make_data(root)
    engine.predict(train(engine, data), datamodule=data)
    assert heatmaps(folder_of(engine) / "images") == EXPECTED_HEATMAPS


def test_second_test_of_one_engine_reports_the_same(run, root, tmp_path):
    engine, data = make_engine(tmp_path), make_data(root)
    model = train(engine, data)
    for _ in range(2):
        (logged,) = engine.test(model, datamodule=data)
        report = pd.read_csv(folder_of(engine) / "categories.csv")
        pd.testing.assert_frame_equal(report, run.report)
        assert logged == pytest.approx(run.logged, rel=1e-4, nan_ok=True)  # float32, summed in another order
        assert heatmaps(folder_of(engine) / "images") == EXPECTED_HEATMAPS


def test_folder_and_dataloader_given_after_a_datamodule_are_left_to_anomalib(root, tmp_path):
    engine, data = make_engine(tmp_path), make_data(root)
    model = train(engine, data)
    engine.test(model, datamodule=data)
    folder = folder_of(engine)
    (folder / "categories.csv").unlink()
    shutil.rmtree(folder / "images")

    dataset = data.test_data.subsample([0, 1])
    loader = DataLoader(dataset, batch_size=2, collate_fn=dataset.collate_fn)
    (logged,) = engine.test(model, dataloaders=loader)
    assert not MEANS & set(logged)
    assert not (folder / "categories.csv").exists()
    shutil.rmtree(folder / "images")

    engine.predict(model, dataset=PredictDataset(root / "bottle" / "train" / "good", image_size=(32, 32)))
    assert heatmaps(folder / "images") == {f"good/{index:03}.png" for index in range(4)}


def test_visualizer_keeps_a_folder_of_its_own(root, tmp_path):
    engine, data = make_engine(tmp_path / "run"), make_data(root)
    model = train(engine, data, visualizer=ImageVisualizer(output_dir=tmp_path / "mine"))
    engine.test(model, datamodule=data)
    assert heatmaps(tmp_path / "mine") == EXPECTED_HEATMAPS
    assert not heatmaps(tmp_path / "run")
    assert model.visualizer.output_dir == tmp_path / "mine"


def test_visualizer_given_to_the_trainer_is_used(root, tmp_path):
    engine, data = (
        make_engine(tmp_path / "run", ImageVisualizer(output_dir=tmp_path / "mine")),
        make_data(root),
    )
    model = train(engine, data, visualizer=False)
    for _ in range(2):
        engine.test(model, datamodule=data)
        assert heatmaps(tmp_path / "mine") == EXPECTED_HEATMAPS
        shutil.rmtree(tmp_path / "mine")


def test_visualizers_have_their_place_back_after_a_run_that_failed(root, tmp_path):
    engine, data = make_engine(tmp_path, Broken()), make_data(root)
    model = train(engine, data)
    with pytest.raises(RuntimeError, match="broken off"):
        engine.test(model, datamodule=data)
    assert model.visualizer in engine.trainer.callbacks


def test_other_datamodules_are_left_to_anomalib(root, tmp_path):
    engine = make_engine(tmp_path)
    data = MVTecAD(root=root, category="bottle", num_workers=0)
    (logged,) = engine.test(train(engine, data), datamodule=data)
    assert not MEANS & set(logged)
    assert not list(tmp_path.rglob("categories.csv"))
    assert len(heatmaps(tmp_path)) == 7


def test_means_have_the_same_keys_where_there_are_no_masks(run, root, tmp_path):
    folders = {"normal_dir": "train/good", "abnormal_dir": "test/bad", "normal_test_dir": "test/good"}
    data = make_data(root, dataset="Folder", categories=["bottle", "wood"], dataset_args=folders)
    engine = make_engine(tmp_path)
    (logged,) = engine.test(train(engine, make_data(root)), datamodule=data)
    assert {name for name in logged if name.startswith("mean_")} == MEANS
    assert np.isnan([logged[f"mean_{name}"] for name in FIGURES if name.startswith("pixel")]).all()
    assert logged["mean_image_AUROC"] == pytest.approx(run.logged["mean_image_AUROC"])


def test_benchmark_leaves_the_categories_of_all_its_jobs_in_one_file(root, tmp_path, monkeypatch):
    # What an installed plugin has; a second one of the same name counts once.
    information = tmp_path / "site" / "anomalib_ccl-0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: anomalib-ccl\nVersion: 0\n")
    (information / "entry_points.txt").write_text(
        "[lightning.pytorch.callbacks_factory]\nanomalib_ccl = anomalib_ccl.plugin.registry:callbacks\n"
    )
    monkeypatch.syspath_prepend(information.parent)
    monkeypatch.delenv("ANOMALIB_CCL_DISABLE")
    monkeypatch.chdir(tmp_path)

    results = []
    for seed in (1, 2):
        configuration = {"seed": seed, "data.categories": ["bottle", "wood"]}
        data = make_data(root, categories=["bottle", "wood"])
        results.append(BenchmarkJob("cpu", make_model(), data, seed, configuration).run())
    table = BenchmarkJob.collect(results)

    (path,) = Path("runs/benchmark").glob("*-categories.csv")
    kept = pd.read_csv(path)
    assert kept["run"].tolist() == [1, 1, 1, 2, 2, 2]
    assert kept["category"].tolist() == ["bottle", "wood", "mean"] * 2
    assert set(kept["model"]) == {"Padim"}
    assert kept["seed"].tolist() == [1, 1, 1, 2, 2, 2]
    means = kept[kept["category"] == "mean"]
    for name in FIGURES:
        assert means[name].tolist() == pytest.approx(table[f"mean_{name}"].tolist(), abs=1e-6, nan_ok=True)

    (path,) = Path("runs/benchmark").glob("*-images.csv")
    images = pd.read_csv(path)
    for keys, rows in images.groupby(["run", "category"]):
        (row,) = kept[(kept[["run", "category"]] == keys).all(axis=1)].to_dict("records")
        assert len(rows) == row["normal_images"] + row["anomalous_images"]
        assert roc_auc_score(rows["defective"], rows["score"]) == pytest.approx(row["image_AUROC"])


@pytest.mark.slow
def test_two_processes_report_what_one_does(root, tmp_path):
    torch.manual_seed(0)
    # Padim insists on one device.
    model = ReverseDistillation(
        backbone="resnet18",
        pre_trained=False,
        pre_processor=ReverseDistillation.configure_pre_processor(image_size=(64, 64)),
    )
    reports, logged = [], []
    # 17 images: the second process gets one of them twice.
    for strategy, devices in (("auto", 1), ("ddp_spawn", 2)):
        engine = make_engine(tmp_path / strategy, strategy=strategy, devices=devices)
        logged += engine.test(model, datamodule=make_data(root))
        reports.append(pd.read_csv(folder_of(engine) / "categories.csv"))
        assert engine.trainer.world_size == devices
        assert heatmaps(folder_of(engine) / "images") == EXPECTED_HEATMAPS
        paths = pd.read_csv(folder_of(engine) / "predictions.csv")["path"]
        assert len(paths) == paths.nunique() == 17
    pd.testing.assert_frame_equal(*reports, atol=1e-4, rtol=0)
    one, two = ({name: figures[name] for name in MEANS} for figures in logged)
    assert two == pytest.approx(one, abs=1e-4, nan_ok=True)
