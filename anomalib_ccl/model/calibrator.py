"""When a model's scores are calibrated: once, at the end of its training."""

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import distributed

from .averaging import NetworkAveraging
from .training_pass import training_images
from .views import calibration_view

if TYPE_CHECKING:
    from .lightning_model import CCL


class Calibrator(Callback):
    """Fits the model's :class:`~anomalib_ccl.calibration.ClassCalibration` in one pass over the training images.

    This happens in the last epoch, before the validation that sets anomalib's thresholds, or at the end of the epoch
    if there is no validation. On several processes, each makes the whole pass, so that all get the same result.
    """

    def __init__(self) -> None:
        self._calibrated_at: int | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: "CCL") -> None:  # type: ignore[override]
        """Calibrate before the last validation of a training."""
        if not trainer.sanity_checking:
            self._calibrate_at_the_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: "CCL") -> None:  # type: ignore[override]
        """Calibrate after the last epoch of a training, where no validation came before."""
        self._calibrate_at_the_end(trainer, pl_module)

    def _calibrate_at_the_end(self, trainer: Trainer, pl_module: "CCL") -> None:
        last = (
            trainer.should_stop
            or trainer.current_epoch + 1 == trainer.max_epochs
            or trainer.global_step == trainer.max_steps
        )
        if trainer.state.fn == TrainerFn.FITTING and last and self._calibrated_at != trainer.global_step:
            averages = [callback for callback in trainer.callbacks if isinstance(callback, NetworkAveraging)]  # type: ignore[attr-defined]
            with averages[0].in_place(trainer, pl_module) if averages else nullcontext():
                if trainer.world_size > 1:
                    # The running statistics of each process are those of its own images; the first one's are saved.
                    for buffer in pl_module.model.network.buffers():
                        distributed.broadcast(buffer, src=0)
                calibrate(pl_module)
            self._calibrated_at = trainer.global_step


@torch.no_grad()
def calibrate(model: "CCL") -> None:
    """Fit a model's calibration to its Trainer's training images.

    Args:
        model: A model in training.
    """
    training = model.training
    model.eval()
    view = calibration_view()
    embeddings, scores, labels = [], [], []
    for batch in training_images(model, "Calibration"):
        raw = model.model.score(view(batch.image))  # type: ignore[arg-type]
        embeddings.append(raw.embedding)
        scores.append(raw.score.flatten())
        labels.append(model.classes.labels(batch))
    model.model.calibration.fit(torch.cat(embeddings), torch.cat(scores), torch.cat(labels).to(model.device))
    model.train(training)
