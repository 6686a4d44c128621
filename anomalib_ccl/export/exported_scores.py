"""A calibrated model as it is exported: it tells the class of each image, and its limits can be found in the graph."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from anomalib.data import InferenceBatch
from anomalib.post_processing import PostProcessor
from torch import Tensor, nn

from anomalib_ccl.export.limits_file import CLASS_INDEX, LIMITS, RAW_SCORE, THRESHOLDS
from anomalib_ccl.training.post_processor import LimitPostProcessor


class Told(NamedTuple):
    """The fields of anomalib's ``InferenceBatch``, and what calibration knows of each image."""

    pred_score: Tensor | None
    pred_label: Tensor | None
    anomaly_map: Tensor | None
    pred_mask: Tensor | None
    class_index: Tensor
    raw_score: Tensor


class TabledPostProcessor(nn.Module):
    """anomalib's post-processor with its thresholds and ranges in tables, one value for each class.

    What a table is asked for depends on the image. Exporters and OpenVINO merge all other constants with each other, so
    that no false-alarm rate could be set in the file.

    Args:
        post_processor: anomalib's post-processor; see :func:`has_tables`.
        classes: The number of classes, unknown products included.
        index: Gives the class of each image of the batch, of shape ``(B,)``.
    """

    def __init__(self, post_processor: PostProcessor, classes: int, index: Callable[[], Tensor]) -> None:
        super().__init__()
        self._index = index
        for name, value in thresholds_of(post_processor).items():
            self.register_buffer(name, value.detach().clone().repeat(classes))
        self.borders = 1 - post_processor.image_sensitivity, 1 - post_processor.pixel_sensitivity

    def forward(self, predictions: InferenceBatch) -> InferenceBatch:
        """Normalise scores and maps, and compare them with their thresholds.

        Args:
            predictions: Calibrated maps of shape ``(B, 1, H, W)`` and scores of shape ``(B, 1)``.

        Returns:
            What the post-processor that this stands for gives.
        """
        score = self._normalized(predictions.pred_score, "image")  # type: ignore[arg-type]
        anomaly_map = self._normalized(predictions.anomaly_map, "pixel")  # type: ignore[arg-type]
        return InferenceBatch(score, score > self.borders[0], anomaly_map, anomaly_map > self.borders[1])

    def _normalized(self, values: Tensor, kind: str) -> Tensor:
        shape = (-1, *[1] * (values.ndim - 1))
        threshold, width = (
            self.get_buffer(f"{kind}_{name}").index_select(0, self._index()).view(shape)
            for name in ("threshold", "range")
        )
        return ((values - threshold) / width + 0.5).clamp(0, 1)


def thresholds_of(post_processor: PostProcessor) -> dict[str, Tensor]:
    """Find what anomalib's post-processor normalises with.

    Args:
        post_processor: The post-processor.

    Returns:
        Scalars, by the names of :data:`~anomalib_ccl.export.limits_file.THRESHOLDS`.
    """
    values = (
        post_processor.image_threshold,
        post_processor.image_max - post_processor.image_min,
        post_processor.pixel_threshold,
        post_processor.pixel_max - post_processor.pixel_min,
    )
    return dict(zip(THRESHOLDS, values, strict=True))


def has_tables(post_processor: Any) -> bool:  # noqa: ANN401
    """Tell whether tables can stand for a post-processor.

    Args:
        post_processor: Post-processor of a model.

    Returns:
        True for anomalib's own, where it normalises with ranges that are not empty and compares with thresholds.
    """
    if type(post_processor) not in (PostProcessor, LimitPostProcessor):
        return False
    if not (post_processor.enable_normalization and post_processor.enable_thresholding):
        return False
    values = torch.stack(list(thresholds_of(post_processor).values()))
    return bool(values.isfinite().all() and (values[1::2] > 0).all())


@contextmanager
def prepared_for_export(model: Any) -> Iterator[None]:  # noqa: ANN401
    """Have a calibrated model return what :class:`Told` has, and take limits and thresholds from tables.

    Args:
        model: A calibrated model with a ``model.calibration`` and a ``post_processor``.

    Yields:
        Nothing; afterwards the model is as it was.
    """
    calibration, post_processor = model.model.calibration, model.post_processor
    limits = calibration.limits()
    calibration.register_buffer("table", limits, persistent=False)
    calibration.limits = lambda: calibration.table
    found: dict[str, Tensor] = {}
    if has_tables(post_processor):
        model.post_processor = TabledPostProcessor(post_processor, len(limits), lambda: found[CLASS_INDEX])

    def keep(_: nn.Module, inputs: tuple, calibrated: Any) -> None:  # noqa: ANN401
        found.update({CLASS_INDEX: calibrated.class_index, RAW_SCORE: inputs[2]})

    try:
        with (
            calibration.register_forward_hook(keep),
            model.register_forward_hook(lambda *call: Told(**call[-1]._asdict(), **found)),
        ):
            yield
    finally:
        del calibration.limits, calibration.table
        model.post_processor = post_processor


# The names that the exporter gives to the tables, after their places in the model.
TABLES = {"model.calibration.table": LIMITS, **{f"post_processor.{name}": name for name in THRESHOLDS}}
