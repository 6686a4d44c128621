"""What a training says of itself: what will happen, how far it is, and what to do next."""

import sys
import time
from collections.abc import Sized
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class TrainingNews(Callback):
    """Says at the start what is trained on, then how much time is left, and at the end where the model is.

    The time left of the whole training stands in the progress bar; where the output is no terminal, there is one line
    for each epoch instead. On several processes, the first one says it.
    """

    def __init__(self) -> None:
        self._said = False
        self._start = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._said = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say in two lines what will happen, before the first epoch: then the model knows its classes."""
        if self._said:
            return
        self._said = True
        self._start, self._first_step = time.monotonic(), trainer.global_step
        if not trainer.is_global_zero:
            return
        model: Any = pl_module
        names = model.class_names
        datamodule = getattr(trainer, "datamodule", None)
        subsets = {
            "train": trainer.train_dataloader.dataset if trainer.train_dataloader is not None else None,
            "validate": getattr(datamodule, "val_data", None),
            "test": getattr(datamodule, "test_data", None),
        }
        counts = ", ".join(f"{len(images)} to {use}" for use, images in subsets.items() if isinstance(images, Sized))
        products = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        print(f"{len(names)} {'product' if len(names) == 1 else 'products'} ({products}); images: {counts}.")
        size = model.input_size
        pixels = "their own size" if size is None else f"{size[0]} × {size[1]} pixels"
        print(f"{_length(trainer)} at {pixels}; results go to {trainer.default_root_dir}.", flush=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Put the time left of the whole training into the progress bar."""
        if (left := self._left(trainer)) is not None:
            pl_module.log("minutes_left", left / 60, prog_bar=True, logger=False, batch_size=1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how far the training is, where there is no terminal."""
        if sys.stdout.isatty() or not trainer.is_global_zero:
            return
        loss = trainer.callback_metrics.get("train_loss_epoch", trainer.callback_metrics.get("train_loss"))
        words = [f"epoch {trainer.current_epoch + 1}"]
        if trainer.max_epochs not in (None, -1):
            words[0] += f" of {trainer.max_epochs}"
        if loss is not None:
            words.append(f"loss {float(loss):.3f}")
        if (left := self._left(trainer)) is not None:
            words.append(f"{timedelta(seconds=round(left))} left")
        print(", ".join(words), flush=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the model is, and the next command."""
        path = getattr(trainer.checkpoint_callback, "best_model_path", "")
        if trainer.is_global_zero and path:
            model: Any = pl_module
            done = "Trained and calibrated" if model.calibrate else "Trained"
            print(f"{done}: {path}")
            print(f"Next: anomalib predict --model CCL --ckpt_path {path} --return_predictions false --data IMAGES")

    def _left(self, trainer: Trainer) -> float | None:
        """Seconds until the end, by the time that the steps so far took; None where the training has no end."""
        total = trainer.estimated_stepping_batches
        done = trainer.global_step - self._first_step
        if total == float("inf") or done < 1:
            return None
        return (time.monotonic() - self._start) / done * max(0, total - trainer.global_step)


def _length(trainer: Trainer) -> str:
    if trainer.max_epochs not in (None, -1):
        return f"{trainer.max_epochs} {'epoch' if trainer.max_epochs == 1 else 'epochs'}"
    return f"{trainer.max_steps} steps" if trainer.max_steps != -1 else "Training without an end"
