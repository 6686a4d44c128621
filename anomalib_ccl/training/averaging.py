"""The average of the weights over the last training steps, which is steadier than the last weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn


class NetworkAveraging(WeightAveraging):
    """Validates, saves and ends with an exponential moving average of the network's weights.

    Lightning's :class:`~lightning.pytorch.callbacks.EMAWeightAveraging` also averages what a validation has just set,
    the thresholds and the calibration, and replaces them by their average at the end of the training. Here such parts
    are shared between the model and its average, and so is a frozen teacher, which then needs no second copy.

    Args:
        decay: Weight of the old average in each step, in (0, 1): the average reaches over about 1 / (1 - decay) steps.
        shared: Names of submodules that are not averaged where the model has them.

    Example:
        >>> NetworkAveraging(0.99, shared=["post_processor"]).state_dict()
        {'latest_update_step': 0}
    """

    def __init__(self, decay: float, shared: Sequence[str]) -> None:
        # Unlike that of EMAWeightAveraging, this function leaves what is shared exactly as it is.
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))
        self._shared = shared
        self._is_in_place = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the average when a training begins."""
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            parts = dict(pl_module.named_modules())
            for name in parts.keys() & set(self._shared):
                self._average_model.module.set_submodule(name, parts[name])

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the average from a checkpoint, which may have given the model another network since the setup."""
        self.setup(trainer, pl_module, trainer.state.fn or "")
        super().on_load_checkpoint(trainer, pl_module, checkpoint)

    @contextmanager
    def in_place(self, trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
        """Give the model the averaged weights for a while.

        Args:
            trainer: The trainer.
            pl_module: A model in training, outside of its validation, in which it has them anyway.

        Yields:
            Nothing.
        """
        self.on_validation_epoch_start(trainer, pl_module)
        try:
            yield
        finally:
            self.on_validation_epoch_end(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the model the averaged weights."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._is_in_place = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the model its own weights back."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._is_in_place = False

    def undo(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give a model whose validation was broken off its own weights back.

        Args:
            trainer: The trainer.
            pl_module: A model in training.
        """
        if self._is_in_place:
            self.on_validation_epoch_end(trainer, pl_module)


def check_decay(decay: float | None) -> None:
    """Refuse a decay that averages nothing.

    Args:
        decay: Decay of an exponential moving average, or None for no average.

    Raises:
        ValueError: If it is not in (0, 1).
    """
    if decay is not None and not 0 < decay < 1:
        msg = f"ema_decay must lie in (0, 1), got {decay}; 0.99 averages over about 100 steps"
        raise ValueError(msg)


def refuse_other_averaging(trainer: Trainer) -> None:
    """Refuse Lightning's own averages of the weights, which would spoil thresholds and calibration.

    Args:
        trainer: The trainer of a model.

    Raises:
        ValueError: If it has such a callback.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging) and not isinstance(callback, NetworkAveraging):
            msg = (
                f"{type(callback).__name__} would average the thresholds and the calibration of CCL too; "
                "take it away and give CCL ema_decay=0.99 instead"
            )
            raise ValueError(msg)
