"""When a model is calibrated: with the weights that are kept, however a training ends."""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from anomalib.post_processing import PostProcessor
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import distributed

from anomalib_ccl.data.passes import Passes
from anomalib_ccl.model.torch_model import CCLModel
from anomalib_ccl.training.calibrate import calibrate
from anomalib_ccl.training.length import refuse_untrained
from anomalib_ccl.training.post_processor import LimitPostProcessor

logger = logging.getLogger(__name__)

# What belongs to the weights of one moment, by the beginnings of its names in a checkpoint.
_OF_THE_MOMENT = ("model.calibration.", "model.memory.")


class Completion(Callback):
    """Calibrates a model for the very weights that are kept.

    That happens before a validation that computes figures or a threshold; when a checkpoint is saved that is kept; and
    when the training ends, whatever has ended it. So a model in memory, the checkpoints that are left and the table of
    a test that follows belong together. When a training ends, a checkpoint of its last weights is there: that of each
    ModelCheckpoint without a monitor, else ``last.ckpt`` beside the others.

    It takes as long as an epoch, or longer. So it does not happen for a checkpoint that a ModelCheckpoint will replace
    by the next one, as anomalib's does after each epoch. Where a training is killed or fails, that is what is left: the
    training goes on from it, or ``anomalib-ccl recalibrate`` completes it.

    An interrupt (Ctrl-C, SIGTERM) ends a training like any other end, but not on several processes, which it reaches at
    different moments. After any other error the model in memory is not calibrated.
    """

    def __init__(self) -> None:
        self._calibrated_at: tuple[int, int] | None = None
        self._saved_at: tuple[int, int] | None = None
        self._left_incomplete = False  # a checkpoint that would have been replaced
        self._replaced_of: int | None = None  # the epoch in which what ModelCheckpoints save now will be replaced

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier training, and its calibration: other weights are to come, or even other products."""
        self._calibrated_at = self._saved_at = self._replaced_of = None
        self._left_incomplete = False
        _reset(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Note whether what is about to be saved will be replaced: ModelCheckpoints act after all other callbacks."""
        if all(
            isinstance(x, ModelCheckpoint) and x.monitor is None and x.save_top_k == 1
            for x in trainer.checkpoint_callbacks
        ):
            self._replaced_of = _epoch(trainer)

    on_train_epoch_end = on_validation_end = on_train_batch_end

    def let_others_save(self) -> None:
        """Take whoever saves now for a user."""
        self._replaced_of = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrate before a validation of a training, if a figure or a threshold is computed of it."""
        figures = getattr(getattr(pl_module, "evaluator", None), "val_metrics", None)
        post_processor = getattr(pl_module, "post_processor", None)
        fitted = isinstance(post_processor, PostProcessor) and not isinstance(post_processor, LimitPostProcessor)
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and (figures or fitted):
            self.complete(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrate the model, and save it if no checkpoint has its last weights."""
        self._end(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to call trained what Lightning found nothing left to train of."""
        if self._calibrated_at is None:
            refuse_untrained(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Calibrate and save the model of an interrupted training; leave that of a failed one without calibration."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.global_step == 0:
            return
        if isinstance(exception, KeyboardInterrupt | SIGTERMException) and trainer.world_size == 1:
            logger.warning("Interrupted: the model is being calibrated and saved. Ctrl-C again ends it without that.")
            start = time.monotonic()
            with _interruptible():
                path = self._end(trainer, pl_module)
            logger.warning("Calibrated in %.0f s and saved: %s", time.monotonic() - start, path or "in memory alone")
        elif self._calibrated_at != _moment(trainer):
            _reset(pl_module)

    def complete(self, trainer: Trainer, pl_module: Any) -> None:  # noqa: ANN401
        """Calibrate the model, if that has not been done for its weights, on all processes."""
        if self._calibrated_at == _moment(trainer):
            return
        model: CCLModel = pl_module.model
        if trainer.world_size > 1:
            # The running statistics of each process are those of its own images; the first one's are saved.
            for buffer in model.network.buffers():
                distributed.broadcast(buffer, src=0)
        if pl_module.calibrate:
            images = Passes.of_training(pl_module, pl_module.pre_processor)
            training = pl_module.training
            pl_module.eval()
            with trainer.precision_plugin.val_step_context():
                calibrate(model, images.labelled(pl_module.classes.labels), encode=pl_module.encode)
            pl_module.train(training)
        self._calibrated_at = _moment(trainer)

    def complete_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Complete the model that is being saved, and its checkpoint, unless that will be replaced."""
        if self._replaced_of == _epoch(trainer) and self._calibrated_at != _moment(trainer):
            _reset(pl_module)  # what there is is of earlier weights
            self._left_incomplete = True
        else:
            self.complete(trainer, pl_module)
            self._saved_at = _moment(trainer)
        state = {name: value for name, value in pl_module.state_dict().items() if name.startswith(_OF_THE_MOMENT)}
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **state}

    def _end(self, trainer: Trainer, pl_module: LightningModule) -> str:
        """Calibrate the model, and save it as each ModelCheckpoint would, over what is not calibrated; give a path."""
        self.let_others_save()
        self.complete(trainer, pl_module)
        callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
        if not callbacks or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return ""
        # The epoch of their last names: that of the trainer is higher once it has ended.
        moment = {"epoch": torch.tensor(_epoch(trainer) - 1), "step": torch.tensor(trainer.global_step)}
        if self._left_incomplete or self._saved_at != _moment(trainer):
            for callback in callbacks:  # Lightning has no public way to its own choice of names
                if callback.monitor is None:
                    callback._save_topk_checkpoint(trainer, {**trainer.callback_metrics, **moment})
                callback._save_last_checkpoint(trainer, {**trainer.callback_metrics, **moment})
        saved = [x._last_checkpoint_saved for x in callbacks if x._last_global_step_saved == trainer.global_step]
        if saved and self._saved_at == _moment(trainer):
            return saved[0]
        last = ModelCheckpoint(callbacks[0].dirpath, ModelCheckpoint.CHECKPOINT_NAME_LAST)
        last._save_topk_checkpoint(trainer, moment)
        callbacks[0].best_model_path = callbacks[0].best_model_path or last.best_model_path
        return last.best_model_path


def _moment(trainer: Trainer) -> tuple[int, int]:
    """What tells weights apart: optimizer steps, and batches, of which each moves the running statistics."""
    return trainer.global_step, trainer.fit_loop.total_batch_idx


def _epoch(trainer: Trainer) -> int:
    """The epochs that have begun, which rises before any callback hears of the next one."""
    return trainer.fit_loop.epoch_progress.current.ready


def _reset(pl_module: Any) -> None:  # noqa: ANN401
    pl_module.model.calibration.reset()
    pl_module.model.memory.reset()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let a second Ctrl-C end the program: Lightning ignores it from the first one on."""
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, ignored)
