"""Rows of what was predicted, where heatmaps go, and what is known of images before they are predicted."""

import csv
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.post_processing import PostProcessor
from lightning import LightningModule

from anomalib_ccl.reports.predictions import KnownImages, Prediction, PredictionsFile, predictions


class Model(LightningModule):
    def __init__(self, post_processor: PostProcessor | None) -> None:
        super().__init__()
        self.post_processor = post_processor


class ModelOfProducts(Model):
    class_names = ("bolt",)
    model = None


def rows(post_processor: PostProcessor | None, scores: torch.Tensor, **fields: object) -> list[list[str]]:
    """The cells of a batch's predictions, as they are written."""
    batch = ImageBatch(image=torch.zeros(len(scores), 3, 4, 4), pred_score=scores, **fields)
    if post_processor is not None:
        post_processor.post_process_batch(batch)
    return [
        ["" if x is None else str(x) for x in row] for row in predictions(Model(post_processor), batch, KnownImages([]))
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("sensitivity", [0.3, 0.5, 0.7])
def test_verdict_follows_from_score_and_threshold_as_they_are_written(dtype: torch.dtype, sensitivity: float) -> None:
    post_processor = PostProcessor(image_sensitivity=sensitivity)
    limit = post_processor.normalized_image_threshold.to(dtype)
    above, below = (torch.nextafter(limit, torch.full_like(limit, end)) for end in (1, 0))
    written = rows(post_processor, torch.stack([limit, above, below, torch.ones_like(limit), torch.zeros_like(limit)]))
    assert {row[5] for row in written} == {"normal", "anomalous"}
    if dtype == torch.float32:
        assert [row[5] for row in written[:3]] == ["normal", "anomalous", "normal"]
    for _, _, _, score, threshold, verdict, _ in written:
        assert (float(score) > float(threshold)) == (verdict == "anomalous")


def test_there_is_no_threshold_where_nothing_was_compared() -> None:
    assert rows(None, torch.tensor([3.5])) == [["", "", "", "3.5", "", "", ""]]
    off = PostProcessor(enable_thresholding=False)
    assert rows(off, torch.tensor([3.5])) == [["", "", "", "3.5", "", "", ""]]


def test_product_is_named_by_models_that_recognise_one_and_other_explanations_are_none() -> None:
    batch = ImageBatch(image=torch.zeros(1, 3, 4, 4), explanation=["bolt"], gt_label=torch.tensor([1]))
    for model, product in ((ModelOfProducts(None), "bolt"), (Model(None), None)):
        (row,) = predictions(model, batch, KnownImages([]))
        assert row == Prediction(None, "", product, None, None, None, True)


@pytest.mark.parametrize(
    ("verdict", "defective", "outcome"),
    [
        ("anomalous", True, "defective, found"),
        ("normal", True, "defective, missed"),
        ("anomalous", False, "false alarm"),
        ("normal", False, "normal"),
        ("anomalous", None, "anomalous"),
        (None, True, ""),
    ],
)
def test_outcome_says_how_verdict_and_truth_agree(verdict: str, defective: bool, outcome: str) -> None:
    assert Prediction(verdict=verdict, defective=defective).outcome() == outcome


def test_names_of_any_kind_can_be_read_again(tmp_path: Path) -> None:
    names = ["a, b.png", 'a "b".png', "a\nb.png", "ü/物.png", "a\r.png", "\udcff.png"]
    path = tmp_path / "predictions.csv"
    PredictionsFile(path, begin=True).close()
    file = PredictionsFile(path)
    file.add(Prediction(path=name) for name in names)
    with path.open(newline="", encoding="utf-8") as stream:  # before it is closed
        assert [row[0] for row in csv.reader(stream)] == ["path", *names[:-1], "\\udcff.png"]
    file.close()


def labelled(paths: list[str], labels: list[int] | None = None, **columns: list[str]) -> SimpleNamespace:
    frame = pd.DataFrame({"image_path": paths, "label_index": labels or [0] * len(paths), **columns})
    return SimpleNamespace(samples=frame)


def unlabelled(*paths: str) -> SimpleNamespace:
    return SimpleNamespace(image_filenames=[Path(path) for path in paths])


def places(images: KnownImages, paths: list[str]) -> list[str]:
    return [images.place(path).as_posix() for path in paths]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["/a/cable/test/good/0.png", "/a/cable/test/cut/0.png"], ["cable/good/0.png", "cable/cut/0.png"]),
        (["/a/cable/test/good/0.png", "/a/cable/test/good/1.png"], ["cable/good/0.png", "cable/good/1.png"]),
        (["/a/cable/OK/S1/0.jpg", "/a/cable/NG/AK/S1/0.jpg"], ["cable/OK/S1/0.jpg", "cable/NG/AK/S1/0.jpg"]),
        (["x/../cable/good/0.png", "/tmp/made/0.png"], None),
    ],
)
def test_images_of_a_category_have_places_of_their_own_in_its_folder(paths: list[str], expected: list[str]) -> None:
    found = places(KnownImages([labelled(paths, category=["cable"] * len(paths))]), paths)
    assert len(set(found)) == len(paths)
    assert all(path.startswith("cable/") and ".." not in path for path in found)
    assert expected in (None, found)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (
            labelled(["/a/b/test/good/0.png", "/a/c/test/good/0.png"], category=["set/b", "c"]),
            ["set/b/good/0.png", "c/good/0.png"],
        ),
        (labelled(["/a/b/test/0.png", "/a/c/test/0.png"]), ["b/test/0.png", "c/test/0.png"]),
        (unlabelled("/day/line/0.png", "/day/line/more/0.png"), ["0.png", "more/0.png"]),
        (unlabelled("/a/0.bmp", "/a/0.png", "/a/0.JPG", "/a/1.tiff"), ["0.bmp.png", "0.png", "0.JPG", "1.tiff.png"]),
    ],
)
def test_images_of_several_categories_and_of_none_are_kept_apart(images: SimpleNamespace, expected: list[str]) -> None:
    paths = images.samples["image_path"] if hasattr(images, "samples") else map(str, images.image_filenames)
    assert places(KnownImages([images]), list(paths)) == expected


def test_images_that_no_data_set_has_named_go_under_all_of_their_path() -> None:
    paths = ["/line1/good/0.png", "/line2/good/0.png"]
    assert places(KnownImages([object()]), paths) == ["line1/good/0.png", "line2/good/0.png"]


def test_label_of_the_data_set_counts_before_that_of_the_batch_and_may_be_unknown() -> None:
    images = KnownImages([labelled(["/a/0", "/a/1", "/a/2"], [0, 1, -1], category=["bolt"] * 3)])
    assert [images.of(f"/a/{n}", label=True).defective for n in range(4)] == [False, True, None, True]
    assert [images.of(path).category for path in ("/a/0", "/b/0")] == ["bolt", ""]
    assert [images.of(path).number for path in ("/a/2", "/b/0")] == [2, None]
