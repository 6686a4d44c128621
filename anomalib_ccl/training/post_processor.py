"""The threshold of a calibrated model: the limit of each class."""

from typing import Any

from anomalib.data import InferenceBatch
from anomalib.post_processing import PostProcessor


class LimitPostProcessor(PostProcessor):
    """Call anomalous what is above the limit of its class.

    :class:`~anomalib_ccl.model.calibration.ClassCalibration` makes 1 the limit of every class. Scores and maps become
    half the calibrated ones, at most 1, so that anomalib's 0.5 is the threshold. Neither defective images nor a
    validation set anything.

    Example:
        >>> import torch
        >>> calibrated = InferenceBatch(pred_score=torch.tensor([0.98, 1.02]), anomaly_map=torch.tensor([[0.99, 1.01]]))
        >>> processed = LimitPostProcessor()(calibrated)
        >>> processed.pred_score.tolist(), processed.pred_label.tolist(), processed.pred_mask.tolist()
        ([0.49..., 0.50...], [False, True], [[False, True]])
    """

    def __init__(self) -> None:
        super().__init__()
        for threshold in (self._image_threshold, self._pixel_threshold):  # anomalib has no public way to set them
            threshold.fill_(1.0)
        for low, high in ((self.image_min, self.image_max), (self.pixel_min, self.pixel_max)):
            low.fill_(0.0)
            high.fill_(2.0)

    def forward(self, predictions: InferenceBatch) -> InferenceBatch:
        """Halve scores and maps, and compare them with 0.5."""
        score, anomaly_map = (
            None if x is None else (x / 2).clamp(0, 1) for x in (predictions.pred_score, predictions.anomaly_map)
        )
        label, mask = (None if x is None else ~(x <= 0.5) for x in (score, anomaly_map))  # NaN is not normal
        return InferenceBatch(score, label, anomaly_map, mask)

    def _load_from_state_dict(self, *args: Any) -> None:  # noqa: ANN401
        """Leave the threshold as it is: a checkpoint's may be that of another post-processor."""

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Leave the threshold as it is."""

    def on_validation_epoch_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Leave the threshold as it is."""
