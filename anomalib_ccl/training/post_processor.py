"""A threshold from normal images alone."""

import math
from typing import Any

from anomalib.post_processing import PostProcessor


def set_to_limit(post_processor: PostProcessor) -> None:
    """Put the thresholds where calibration has put the limit of each class.

    Args:
        post_processor: The post-processor of a calibrated model.
    """
    for threshold in (post_processor._image_threshold, post_processor._pixel_threshold):
        threshold.fill_(1.0)
    for low, high in (
        (post_processor.image_min, post_processor.image_max),
        (post_processor.pixel_min, post_processor.pixel_max),
    ):
        low.fill_(0.0)
        high.fill_(2.0)


def forget_thresholds(post_processor: PostProcessor) -> None:
    """Leave a post-processor as one that never saw a validation.

    Args:
        post_processor: The post-processor of a model.
    """
    for _, value in post_processor.named_buffers(recurse=False):
        value.fill_(math.nan)


class LimitPostProcessor(PostProcessor):
    """Put the threshold where calibration has put the limit of each class, whatever the validation set.

    :class:`~anomalib_ccl.model.calibration.ClassCalibration` makes 1 the limit that a normal image exceeds with the
    false-alarm rate that the user asked for. So neither anomalous images nor a validation are needed. Scores and maps
    become half the calibrated ones, at most 1: what lies above 0.5 is anomalous.

    Example:
        >>> import torch
        >>> from anomalib.data import InferenceBatch
        >>> calibrated = InferenceBatch(pred_score=torch.tensor([[0.8], [1.2]]), anomaly_map=torch.zeros(2, 1, 4, 4))
        >>> processed = LimitPostProcessor()(calibrated)
        >>> processed.pred_score.flatten().tolist(), processed.pred_label.flatten().tolist()
        ([0.4000..., 0.6000...], [False, True])
    """

    def __init__(self) -> None:
        super().__init__()
        set_to_limit(self)

    def _load_from_state_dict(self, *args: Any) -> None:  # noqa: ANN401
        """Leave the threshold and the range as they are: the checkpoint's may be those of a validation."""

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Leave the threshold and the range as they are."""

    def on_validation_epoch_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Leave the threshold and the range as they are."""
