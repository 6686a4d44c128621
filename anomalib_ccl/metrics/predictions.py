"""What was predicted for each image, as a row of a CSV file."""

import csv
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from anomalib.data import ImageBatch
from anomalib.post_processing import PostProcessor
from lightning.pytorch import LightningModule
from torch import Tensor

from anomalib_ccl.metrics.full_disk import writing_to
from anomalib_ccl.metrics.images import PassImages
from anomalib_ccl.model import CCL


class Prediction(NamedTuple):
    """What was predicted for an image, and what is known of it; None where there is no such thing.

    Attributes:
        path: The image, as its data set names it.
        category: The category that it is of, as the data set tells.
        product: The class that :class:`~anomalib_ccl.CCL` takes it for, or ``unknown``.
        score: How anomalous it is, in [0, 1] once the model is trained.
        threshold: The largest score of a normal image. On the scale of the score, which anomalib's normalisation
            makes: 0.5 unless the post-processor's ``image_sensitivity`` says otherwise, with ``false_alarm_rate`` as
            without, because calibration has divided the score by the limit of the class before.
        verdict: ``anomalous`` if the score is greater than the threshold, else ``normal``: the model's ``pred_label``.
        defective: Whether it is anomalous in truth, as the data set tells.
    """

    path: str | None = None
    category: str | None = None
    product: str | None = None
    score: np.floating | None = None
    threshold: np.floating | None = None
    verdict: str | None = None
    defective: bool | None = None

    def caption(self) -> str:
        """Say what was predicted, for people.

        Returns:
            What there is of product, score and verdict.

        Example:
            >>> Prediction(product="bottle", score=np.float32(0.7748), verdict="anomalous").caption()
            'bottle, score 0.775, anomalous'
        """
        score = None if self.score is None else f"score {self.score:.3f}"
        return ", ".join(part for part in (self.product, score, self.verdict) if part)


def predictions(model: LightningModule, batch: ImageBatch, images: PassImages) -> Iterator[Prediction]:
    """Take what was predicted from a batch.

    Args:
        model: The model that predicted.
        batch: What it predicted, after its post-processor has normalised the scores.
        images: What is known of the images.

    Yields:
        The prediction for each image.
    """
    size = len(batch)
    missing = [None] * size
    paths = batch.image_path or missing
    # Other models explain themselves in prose.
    products = (batch.explanation if isinstance(model, CCL) else None) or missing
    scores = missing if batch.pred_score is None else _numbers(batch.pred_score)
    labels = missing if batch.pred_label is None else batch.pred_label.flatten().tolist()
    truth = missing if batch.gt_label is None else batch.gt_label.flatten().tolist()
    threshold = _threshold(model, batch)
    for path, product, score, label, defective in zip(paths, products, scores, labels, truth, strict=True):
        verdict = None if label is None else ("anomalous" if label else "normal")
        category, truly = images.category(path or ""), images.defective(path or "", defective)
        yield Prediction(path, category, product, score, threshold, verdict, truly)


def _threshold(model: Any, batch: ImageBatch) -> np.floating | None:  # noqa: ANN401
    """The number that the post-processor has compared the scores of a batch with."""
    post_processor = getattr(model, "post_processor", None)
    if not isinstance(post_processor, PostProcessor) or not post_processor.enable_thresholding:
        return None
    return None if batch.pred_score is None else _numbers(post_processor.normalized_image_threshold)[0]


def _numbers(tensor: Tensor) -> Any:  # noqa: ANN401
    """The numbers, in numpy's single precision, which prints as few digits as tell two of them apart."""
    return tensor.flatten().cpu().numpy()


class PredictionsFile:
    """A CSV file with a row for each image, to which several processes may write.

    Its columns are those of :class:`Prediction`; a cell is empty where there is no such thing. What was added is in the
    file, whatever happens to the process afterwards.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing_to(path.parent):
            # Names that are not UTF-8 are written with escapes: all of the file can be read.
            self._file = path.open("a", newline="", encoding="utf-8", errors="backslashreplace")

    def add(self, rows: Iterable[Iterable[Any]]) -> None:
        """Add rows.

        Args:
            rows: Predictions.

        Raises:
            OSError: If there is no room for them.
        """
        with writing_to(self.path.parent):
            csv.writer(self._file).writerows(rows)
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # a full disk, of which adding a row has told
            self._file.close()
