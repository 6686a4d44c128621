"""How much a model depends on the epoch at which its training ends."""

from collections import deque

from anomalib.data import ImageBatch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage, TrainerFn

from anomalib_ccl.metrics.collector import Collector, images_of
from anomalib_ccl.metrics.observer import PredictionObserver

_FIGURES = ("image_AUROC", "pixel_AUROC")
_LAST = 5


class Steadiness(PredictionObserver):
    """Follows the means over the categories from validation to validation.

    In a training on :class:`~anomalib_ccl.data.MultiCategory`, each validation logs ``val_mean_image_AUROC`` and
    ``val_mean_pixel_AUROC``. A test by the same Trainer then logs ``spread_image_AUROC`` and ``spread_pixel_AUROC``,
    the largest less the smallest of the last five validations: 0 is a model for which it makes no difference when its
    training ends. NaN if there were fewer than two validations.

    Example:
        >>> from anomalib.engine import Engine
        >>> engine = Engine(callbacks=[Steadiness()])  # needless where the plugin is installed
    """

    stages = frozenset({RunningStage.VALIDATING})

    def __init__(self) -> None:
        self._collector: Collector | None = None
        self._means: deque[dict[str, float]] = deque(maxlen=_LAST)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier training."""
        del trainer, pl_module
        self._means.clear()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Get ready for the images of the validation set."""
        data = images_of(trainer, trainer.val_dataloaders, "val_data")
        in_training = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        self._collector = Collector(data, pl_module) if data is not None and in_training else None

    def observe(self, trainer: Trainer, pl_module: LightningModule, batch: ImageBatch, dataloader_idx: int) -> None:
        """Add a batch of predictions."""
        del pl_module, dataloader_idx
        if self._collector is not None:
            self._collector.add(trainer, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the means and log them."""
        if self._collector is None:
            return
        mean = self._collector.compute(trainer).iloc[-1]
        means = {name: float(mean[name]) for name in _FIGURES}
        self._means.append(means)
        pl_module.log_dict({f"val_mean_{name}": value for name, value in means.items()}, sync_dist=True)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the spread of the last validations, with the same keys for every model."""
        if images_of(trainer, trainer.test_dataloaders, "test_data") is None:
            return
        for name in _FIGURES:
            values = [means[name] for means in self._means]
            spread = max(values) - min(values) if len(values) > 1 else float("nan")
            pl_module.log(f"spread_{name}", spread, sync_dist=True)
