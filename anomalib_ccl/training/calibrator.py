"""When a model's scores are calibrated: once, at the end of its training."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from anomalib.data import ImageBatch
from anomalib.models.components import AnomalibModule
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, distributed, nn

from anomalib_ccl.training.averaging import NetworkAveraging
from anomalib_ccl.training.training_pass import training_images
from anomalib_ccl.training.views import calibration_view


class Calibratable(Protocol):
    """What calibration needs of a network: raw scores of images, and a place for what they tell."""

    calibration: Any

    @property
    def network(self) -> nn.Module:
        """The reconstruction network, whose running statistics the processes must share."""

    def score(self, images: Tensor) -> Any:  # noqa: ANN401
        """Give embeddings of shape ``(B, D)`` and raw scores of shape ``(B, 1)`` of images."""


class Calibrator(Callback):
    """Fits a network's calibration in one pass over the training images.

    This happens in the last epoch, before the validation that sets anomalib's thresholds, or at the end of the epoch
    if there is no validation. On several processes, each makes the whole pass, so that all get the same result.

    Args:
        network: The network, a part of the Trainer's model.
        labels: Gives the classes of training images, integers of shape ``(B,)``.
    """

    def __init__(self, network: Calibratable, labels: Callable[[ImageBatch], Tensor]) -> None:
        self._network = network
        self._labels = labels
        self._calibrated_at: int | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrate before the last validation of a training."""
        if not trainer.sanity_checking:
            self._calibrate_at_the_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrate after the last epoch of a training, where no validation came before."""
        self._calibrate_at_the_end(trainer, pl_module)

    def _calibrate_at_the_end(self, trainer: Trainer, pl_module: Any) -> None:  # noqa: ANN401
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
                    for buffer in self._network.network.buffers():
                        distributed.broadcast(buffer, src=0)
                calibrate(pl_module, self._network, self._labels)
            self._calibrated_at = trainer.global_step


@torch.no_grad()
def calibrate(model: AnomalibModule, network: Calibratable, labels: Callable[[ImageBatch], Tensor]) -> None:
    """Fit a network's calibration to the training images of its model's Trainer.

    Args:
        model: A model in training.
        network: The part of it that is calibrated.
        labels: Gives the classes of training images.
    """
    training = model.training
    model.eval()
    view = calibration_view()
    embeddings, scores, classes = [], [], []
    for batch in training_images(model, "Calibration"):
        raw = network.score(view(batch.image))  # type: ignore[arg-type]
        embeddings.append(raw.embedding)
        scores.append(raw.score.flatten())
        classes.append(labels(batch))
    network.calibration.fit(torch.cat(embeddings), torch.cat(scores), torch.cat(classes).to(model.device))
    model.train(training)
