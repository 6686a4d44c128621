"""How a model scores images in anomalib's engine: in a validation, a test and a prediction."""

from typing import TYPE_CHECKING, Any

from anomalib.data import ImageBatch, ImageItem, PredictDataset
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from lightning.pytorch.utilities.types import STEP_OUTPUT

from anomalib_ccl.classes.training_classes import TrainingClasses
from anomalib_ccl.data.reading import PixelRanges, is_high_bit_depth, orientation_of, read_image
from anomalib_ccl.errors import InputError
from anomalib_ccl.model.torch_model import CCLModel

if TYPE_CHECKING:
    # Not a base class: anomalib lists the direct subclasses of its own as models.
    _Base = AnomalibModule
else:
    _Base = object


class Scoring(_Base):
    """The part of a Lightning module that scores images and names their classes.

    Attributes:
        model: The network.
        classes: The classes of the training images.
        calibrate: Whether the model is to be calibrated.
        pixel_ranges: Black and white of the training images, where MultiCategory read them.
    """

    model: CCLModel
    classes: TrainingClasses
    calibrate: bool
    pixel_ranges: PixelRanges | None

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Build anomalib's default evaluator, which here leaves out F1 where no post-processor gives verdicts."""
        evaluator = AnomalibModule.configure_evaluator()
        for metric in evaluator.test_metrics:
            if "pred_label" in metric.fields:  # type: ignore[operator]  # nn.Module could have a tensor of that name
                metric.strict = False  # type: ignore[assignment]
        return evaluator

    def validation_step(self, batch: ImageBatch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:  # noqa: ANN401
        """Score a batch of images."""
        del args, kwargs
        prediction = self.model(batch.image)
        names = [*self.classes.names, "unknown"]
        return batch.update(
            anomaly_map=prediction.anomaly_map,
            pred_score=prediction.pred_score,
            explanation=[names[i] for i in prediction.class_index] if self.model.calibration.is_calibrated else None,
        )

    test_step = validation_step  # type: ignore[assignment]  # anomalib's takes any batch

    def predict_step(  # type: ignore[override]
        self, batch: ImageBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> STEP_OUTPUT:
        """Score a batch of images, which are read as those of the training where anomalib reads them otherwise.

        anomalib's ``PredictDataset`` reads images of high bit depth as white, and turns none as its EXIF data say.
        """
        loaders: Any = self.trainer.predict_dataloaders
        loader = loaders[dataloader_idx] if isinstance(loaders, list) else loaders
        ranges, paths = self.pixel_ranges, batch.image_path or []
        if ranges is not None and isinstance(loader.dataset, PredictDataset) and any(map(_is_misread, paths)):
            items = [ImageItem(image=read_image(path, ranges)) for path in paths]
            images = ImageBatch.collate(items).image.to(self.device)  # type: ignore[attr-defined]  # of one size
            transform = getattr(self.pre_processor, "transform", None)
            batch.image = images if transform is None else transform(images)
        return self.validation_step(batch, batch_idx)

    def on_test_start(self) -> None:
        """Refuse to score without limits."""
        if self.calibrate and not self.model.calibration.is_calibrated:
            msg = (
                "this CCL model is not calibrated, so it cannot tell normal from anomalous: train it to its end, or "
                "give the checkpoint of a training with ckpt_path. That of a training which was killed is completed by "
                "`anomalib-ccl recalibrate`; calibrate=False scores without limits"
            )
            raise InputError(msg)

    on_predict_start = on_test_start


def _is_misread(path: str) -> bool:
    return is_high_bit_depth(path) or orientation_of(path) != 1
