"""The page of a test of CCL: its figures, its mistakes and its links, in folders with names that are hard to link."""

import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from anomalib.engine import Engine
from parsed_page import ParsedPage
from PIL import Image

from anomalib_ccl import CCL, MultiCategory
from anomalib_ccl.reports.heatmaps import CCLVisualizer, coloured
from anomalib_ccl.reports.mistakes import EACH

HARD = "ü & <b>#1 %20"


@pytest.fixture(scope="module")
def run(
    trained_ccl: Path, products: Path, product_names: list[str], tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """A test in which there are missed images, and false alarms too: those found defective are also called normal."""
    folder = tmp_path_factory.mktemp("run")
    root = folder / HARD
    shutil.copytree(products, root)
    for name in product_names:
        for defect in [path for path in (root / name / "test").iterdir() if path.name != "good"]:
            for image in defect.iterdir():
                shutil.copy(image, root / name / "test/good" / f"{HARD} {defect.name} {image.name}")
    model = CCL.load_from_checkpoint(trained_ccl, false_alarm_rate=0.2)
    model.visualizer = CCLVisualizer()
    data = MultiCategory(root=root, eval_batch_size=5, num_workers=0, val_split_mode="none")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("ANOMALIB_CCL_DISABLE", "1")  # whether the plug-in is installed or not
        engine = Engine(default_root_dir=folder / f"run {HARD}", accelerator="cpu", enable_progress_bar=False)
        with redirect_stdout(StringIO()) as printed:
            engine.test(model, datamodule=data)
    results = Path(engine.trainer.default_root_dir)
    rows = pd.read_csv(results / "predictions.csv", keep_default_na=False)
    return SimpleNamespace(
        folder=results,
        root=root,
        printed=printed.getvalue(),
        page=ParsedPage(results / "report.html"),
        report=pd.read_csv(results / "categories.csv"),
        missed=rows[rows["defective"] & (rows["verdict"] == "normal")],
        alarms=rows[~rows["defective"] & (rows["verdict"] == "anomalous")],
    )


def test_its_path_is_the_last_that_a_test_prints(run: SimpleNamespace) -> None:
    assert run.printed.endswith(f"\nReport: {run.folder / 'report.html'}\n")


def test_table_has_the_figures_of_the_csv_file(run: SimpleNamespace) -> None:
    header, *rows = run.page.rows
    report = run.report.assign(images=run.report["normal_images"] + run.report["anomalous_images"])
    columns = [name.replace(" ", "_").replace("acc.", "accuracy") for name in header[1:]]
    assert {"images", "image_AUROC", "false_alarms", "missed", "class_accuracy"} <= set(columns)
    assert [row[0] for row in rows] == report["category"].tolist()
    for row, figures in zip(rows, report.to_dict("records"), strict=True):
        for name, cell in zip(columns, row[1:], strict=True):
            figure = figures[name] if name == "images" else 100 * figures[name]
            assert cell == "-" if np.isnan(figure) else float(cell) == pytest.approx(figure, abs=0.0501), name


def test_worst_mistakes_of_each_product_link_to_their_images_and_heatmaps(run: SimpleNamespace) -> None:
    assert len(run.missed) > 0
    assert run.alarms["path"].str.contains(HARD, regex=False).any()
    expected = []
    for _, missed in run.missed.groupby("category"):
        expected += missed.nsmallest(EACH, "score")["path"].tolist()
    for _, alarms in run.alarms.groupby("category"):
        expected += alarms.nlargest(EACH, "score")["path"].tolist()
    addresses = [values["href"] for tag, values in run.page.tags if tag == "a" and not values["href"].startswith("#")]
    files = [run.page.file(address) for address in addresses]
    images, heatmaps = files[::2], files[1::2]
    assert sorted(map(str, images)) == sorted(expected)
    for image, heatmap, address in zip(images, heatmaps, addresses[1::2], strict=True):
        assert image.is_file()
        assert heatmap == run.folder / "images" / image.relative_to(run.root).parts[0] / "/".join(image.parts[-2:])
        assert heatmap.is_file()
        assert not address.startswith("file:")  # it moves along with the page


def test_thumbnails_are_the_photographs_and_the_maps_on_one_scale(run: SimpleNamespace) -> None:
    scale = coloured(np.linspace(0, 1, 256)).astype(int)
    assert len(run.page.pictures) > 1
    for name, (picture, file) in run.page.pictures.items():
        pixels = np.asarray(picture).astype(int)
        if name.startswith("Photograph"):
            with Image.open(file) as photograph:
                original = np.asarray(photograph.convert("RGB").resize(picture.size)).astype(int)
            assert np.abs(pixels - original).mean() < 15
        else:
            assert np.abs(pixels[:, :, None] - scale).sum(-1).min(-1).mean() < 15


def test_page_is_one_file_without_scripts_that_loads_nothing(run: SimpleNamespace) -> None:
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in run.page.tags}
    text = run.page.path.read_text(encoding="utf-8")
    assert not any(word in text for word in ("http:", "https:", "@import", "url(", "<b>", "javascript"))
    for tag, values in run.page.tags:
        assert not any(name.startswith("on") for name in values)
        assert tag != "img" or values["alt"]
    assert ("html", {"lang": "en"}) in run.page.tags


def test_every_product_is_named_and_has_a_histogram(run: SimpleNamespace, product_names: list[str]) -> None:
    assert set(product_names) <= set(run.page.words)
    assert sum(values.get("class") == "histogram" for _, values in run.page.tags) == len(product_names)
