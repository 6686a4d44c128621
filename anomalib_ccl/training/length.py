"""How long a model learns where the user says nothing, and what would spoil it or another run."""

import logging
import math

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging

from anomalib_ccl.errors import InputError
from anomalib_ccl.model.reconstruction import Recipe

logger = logging.getLogger(__name__)

# What Lightning trains for where a trainer was not told.
_LIGHTNING_EPOCHS = 1000


def limit_training(trainer: Trainer, defaults: Recipe) -> None:
    """Train as long as a network's defaults say."""
    length = f"{defaults.epochs} epochs" if defaults.steps is None else f"{defaults.steps} steps"
    logger.info(
        "Training for %s, as in the paper, whose batches have %d images; max_epochs or max_steps sets another length.",
        length,
        defaults.batch_size,
    )
    # A datamodule may have set a limit of its own before.
    limit = math.inf if trainer.max_epochs in (None, -1, _LIGHTNING_EPOCHS) else trainer.max_epochs
    epochs = min(limit, defaults.epochs if defaults.steps is None else math.inf)
    trainer.fit_loop.max_epochs = -1 if math.isinf(epochs) else int(epochs)
    if defaults.steps is not None:
        trainer.fit_loop.epoch_loop.max_steps = defaults.steps


def check_trainer(trainer: Trainer, dtype: torch.dtype) -> None:
    """Refuse, before any run, what a model cannot compute in or with."""
    from anomalib.callbacks import TilerConfigurationCallback  # noqa: PLC0415  # which imports models, and so this file

    if any(isinstance(x, TilerConfigurationCallback) and x.enable for x in trainer.callbacks):  # type: ignore[attr-defined]
        msg = "TilerConfigurationCallback is for other models; cut large images with CCL's own tiles=[2, 3] instead"
        raise InputError(msg)
    if trainer.precision in ("16-true", "bf16-true", "64-true", "transformer-engine", "transformer-engine-float16"):
        msg = f"precision={trainer.precision!r}: CCL computes in '32-true', 'bf16-mixed' or '16-mixed'; choose one"
        raise InputError(msg)
    if dtype != torch.float32:
        msg = f"the weights are {dtype}, but CCL computes in torch.float32; call model.float() first"
        raise InputError(msg)


def check_training(trainer: Trainer) -> None:
    """Refuse what would end in a model that is not calibrated for its weights, or not trained at all."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging | StochasticWeightAveraging):
            msg = (
                f"{type(callback).__name__} would give CCL other weights than those that its calibration is found for; "
                "train without it"
            )
            raise InputError(msg)


def refuse_untrained(trainer: Trainer) -> None:
    """Refuse a training that ended before its first step, as one by the Trainer that anomalib's Engine keeps does."""
    source, way = "this Trainer", "make a new Engine for another training"
    if trainer.ckpt_path is not None:
        source, way = str(trainer.ckpt_path), "complete it as it is with `anomalib-ccl recalibrate`"
    limit = "max_steps" if trainer.global_step == trainer.max_steps else "max_epochs"
    msg = (
        f"{source} has finished its training of {trainer.current_epoch} epochs ({trainer.global_step} steps), so "
        f"nothing is left to train; raise {limit}, or {way}"
    )
    raise InputError(msg)
