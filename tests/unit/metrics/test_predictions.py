"""Rows of what was predicted."""

import csv
from pathlib import Path

import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.post_processing import PostProcessor
from lightning import LightningModule

from anomalib_ccl import CCL
from anomalib_ccl.metrics.images import PassImages
from anomalib_ccl.metrics.predictions import Prediction, PredictionsFile, predictions
from anomalib_ccl.training.post_processor import LimitPostProcessor


class Model(LightningModule):
    def __init__(self, post_processor: PostProcessor | None) -> None:
        super().__init__()
        self.post_processor = post_processor


def rows(post_processor: PostProcessor | None, scores: torch.Tensor, **fields: object) -> list[list[str]]:
    """The cells of a batch's predictions, as they are written."""
    batch = ImageBatch(image=torch.zeros(len(scores), 3, 4, 4), pred_score=scores, **fields)
    if post_processor is not None:
        post_processor.post_process_batch(batch)
    return [
        ["" if x is None else str(x) for x in row] for row in predictions(Model(post_processor), batch, PassImages([]))
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


def test_threshold_of_a_false_alarm_rate_is_a_half_on_the_scale_of_the_scores() -> None:
    written = rows(LimitPostProcessor(), torch.tensor([[0.8], [1.2]]))
    assert [row[3:6] for row in written] == [["0.4", "0.5", "normal"], ["0.6", "0.5", "anomalous"]]


def test_there_is_no_threshold_where_nothing_was_compared() -> None:
    assert rows(None, torch.tensor([3.5])) == [["", "", "", "3.5", "", "", ""]]
    off = PostProcessor(enable_thresholding=False)
    assert rows(off, torch.tensor([3.5])) == [["", "", "", "3.5", "", "", ""]]


def test_product_is_told_by_ccl_alone_and_others_explanations_are_no_product() -> None:
    batch = ImageBatch(image=torch.zeros(1, 3, 4, 4), explanation=["bolt"], gt_label=torch.tensor([1]))
    ccl = CCL("mobilenetv3_small_100", pre_trained=False)
    for model, product in ((ccl, "bolt"), (Model(None), None)):
        (row,) = predictions(model, batch, PassImages([], category="steel"))
        assert row == Prediction(None, "steel", product, None, None, None, True)


def test_a_full_disk_is_told_with_its_place_and_the_way_out() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    file = PredictionsFile(Path("/dev/full"))
    message = "results cannot be written to /dev: No space left on device; free some space, or .* --default_root_dir"
    with pytest.raises(OSError, match=message):
        file.add([Prediction(path="a.png")])
    file.close()


def test_names_of_any_kind_can_be_read_again(tmp_path: Path) -> None:
    names = ["a, b.png", 'a "b".png', "a\nb.png", "ü/物.png", "a\r.png", "\udcff.png"]
    file = PredictionsFile(tmp_path / "predictions.csv")
    file.add(Prediction(path=name) for name in names)
    with file.path.open(newline="", encoding="utf-8") as stream:
        assert [row[0] for row in csv.reader(stream)] == [*names[:-1], "\\udcff.png"]
    file.close()
