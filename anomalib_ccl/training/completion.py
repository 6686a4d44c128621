"""Weights, calibration and thresholds of one moment, however a training ends."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anomalib.data import ImageBatch
from anomalib.post_processing import PostProcessor
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, distributed

from anomalib_ccl.training.calibrate import Calibratable, calibrate
from anomalib_ccl.training.post_processor import forget_thresholds
from anomalib_ccl.training.thresholds import set_thresholds

logger = logging.getLogger(__name__)

# What belongs to the weights of one moment, by the beginnings of its names in a checkpoint.
_OF_THE_MOMENT = ("model.calibration.", "post_processor.")


class Completion(Callback):
    """Calibrates a model, and sets its thresholds on calibrated scores, for the very weights that are kept.

    That happens with each validation, before it scores its first image; when a checkpoint is saved for whose weights it
    has not happened, whoever saves it; and when the training ends, whatever has ended it. So a model in memory, each of
    its checkpoints and the table of a test that follows belong together. When a training ends, a checkpoint of its last
    weights is there: that of a ModelCheckpoint without a monitor, else ``last.ckpt`` beside the others.

    An interrupt (Ctrl-C, SIGTERM) ends a training like any other end, but not on several processes, which it reaches at
    different moments. After any other error the model in memory is not calibrated.

    Args:
        network: The network, a part of the Trainer's model.
        labels: Gives the classes of training images, integers of shape ``(B,)``; without it there is no calibration.
    """

    def __init__(self, network: Calibratable, labels: Callable[[ImageBatch], Tensor] | None) -> None:
        self._network = network
        self._labels = labels
        self._complete_at: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier training, and its calibration: other weights are to come, or even other products."""
        del trainer, pl_module
        self._complete_at = None
        self._network.calibration.reset()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrate before the validation of a training sets the thresholds."""
        if _in_training(trainer):
            self._calibrate(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the model is complete."""
        del pl_module
        if _in_training(trainer):
            self._complete_at = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete the model, and save it if no checkpoint has its last weights."""
        self.complete(trainer, pl_module)
        _save_last(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Complete and save the model of an interrupted training; leave that of a failed one without calibration."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.global_step == 0:
            return
        if isinstance(exception, KeyboardInterrupt | SIGTERMException) and trainer.world_size == 1:
            logger.warning("Interrupted: the model is calibrated as it is, and saved.")
            self.on_train_end(trainer, pl_module)
        elif self._complete_at != trainer.global_step:
            self._network.calibration.reset()
            if type(pl_module.post_processor) is PostProcessor:
                forget_thresholds(pl_module.post_processor)

    def complete(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrate the model and set its thresholds, if that has not been done for its weights.

        Args:
            trainer: The trainer of the model, in training.
            pl_module: The model.
        """
        if self._complete_at != trainer.global_step:
            self._calibrate(trainer, pl_module)
            set_thresholds(trainer, pl_module)
            self._complete_at = trainer.global_step

    def complete_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Complete the model that is being saved, and its checkpoint.

        Args:
            trainer: The trainer of the model, in training.
            pl_module: The model.
            checkpoint: What will be saved, with the model's state as it was before.
        """
        self.complete(trainer, pl_module)
        state = {name: value for name, value in pl_module.state_dict().items() if name.startswith(_OF_THE_MOMENT)}
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **state}

    def _calibrate(self, trainer: Trainer, pl_module: Any) -> None:  # noqa: ANN401
        """Calibrate the model with the weights that it is scored and saved with, on all processes."""
        if trainer.world_size > 1:
            # The running statistics of each process are those of its own images; the first one's are saved.
            for buffer in self._network.network.buffers():
                distributed.broadcast(buffer, src=0)
        if self._labels is not None:
            calibrate(pl_module, self._network, self._labels)


def _in_training(trainer: Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def _save_last(trainer: Trainer) -> None:
    """Save a checkpoint, if Lightning's callbacks, which save after some validations, have none of this moment."""
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    saved = any(callback._last_global_step_saved == trainer.global_step for callback in callbacks)
    if saved or not callbacks or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    for callback in callbacks:
        if callback.monitor is None and callback.save_top_k != 0:
            callback._save_topk_checkpoint(trainer, callback._monitor_candidates(trainer))
            return
    path = Path(callbacks[0].dirpath or trainer.default_root_dir) / "last.ckpt"
    trainer.save_checkpoint(path)
    logger.info("The model as it was at the end of the training, which the monitored checkpoints are not: %s", path)
