"""How long and how fast to learn: the paper's training recipe (Fan et al., https://arxiv.org/abs/2412.04769)."""

import logging
import math
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

logger = logging.getLogger(__name__)

Schedule = Literal["step", "cosine"]

# Of all gradients together; on realad, 82 % of the first epoch's steps exceeded it and none after the third.
_GRADIENT_NORM = 5.0
_EPOCHS = 100
# What Lightning trains for where a trainer is not told.
_LIGHTNING_EPOCHS = 1000
_RECONSTRUCTION_RATE, _PROJECTION_RATE = 0.005, 0.001
_BETAS = (0.5, 0.999)
# The learning rates fall to a tenth when this share of the training is over.
_STEP_AT, _FALL = 0.8, 0.1


class Recipe:
    """The part of a Lightning module that says how it learns; the module has a ``model`` and a ``schedule``."""

    model: Any
    trainer: Any
    clip_gradients: Any
    schedule: Schedule

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Configure Adam with the paper's two learning rates.

        Returns:
            The optimizer and its schedule.
        """
        return adam(self.model.network, self.model.projections, self.trainer.estimated_stepping_batches, self.schedule)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Keep the norm of all gradients at most 5, as in the paper, where the trainer was not told a value.

        Not among the trainer's arguments below, because anomalib lets those win over the user's.

        Args:
            optimizer: The optimizer whose weights have the gradients.
            gradient_clip_val: What the trainer was told; 0 is no clipping, None nothing.
            gradient_clip_algorithm: What the trainer was told.
        """
        value = _GRADIENT_NORM if gradient_clip_val is None else gradient_clip_val
        self.clip_gradients(optimizer, value, gradient_clip_algorithm)

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Trainer arguments that the model needs."""
        return {"num_sanity_val_steps": 0}


def limit_epochs(trainer: Trainer) -> None:
    """Train for the paper's 100 epochs where a trainer was not told how long.

    Args:
        trainer: The trainer of a training that is about to start.
    """
    if trainer.max_epochs == _LIGHTNING_EPOCHS:
        logger.info("Training for %d epochs, as in the paper; max_epochs sets another number.", _EPOCHS)
        trainer.fit_loop.max_epochs = _EPOCHS


def check_schedule(schedule: str) -> None:
    """Refuse an unknown schedule.

    Args:
        schedule: Name of a schedule.

    Raises:
        ValueError: If there is none of this name.
    """
    if schedule not in get_args(Schedule):
        msg = f"unknown schedule {schedule!r}; choose one of {', '.join(get_args(Schedule))}"
        raise ValueError(msg)


def adam(
    reconstruction: nn.Module, projections: nn.Module, steps: float, schedule: Schedule = "step"
) -> OptimizerLRScheduler:
    """Configure Adam with one learning rate for the projections and another for bottleneck and decoder.

    Args:
        reconstruction: Bottleneck and decoder; what needs no gradient, as a teacher, is left out.
        projections: The projections; they may have no weights.
        steps: Optimizer steps of the whole training; infinite if it has no end, and then the rates never fall.
        schedule: ``"step"`` is that of the authors' configuration, to whose scheduler a fault in their code never gives
            effect: both rates fall to a tenth at 80 % of the training; ``"cosine"`` has them fall to 0 along half a
            cosine.

    Returns:
        The optimizer, and its schedule, which counts steps.

    Example:
        >>> configured = adam(nn.Linear(2, 2), nn.Linear(2, 2), steps=10)
        >>> [group["lr"] for group in configured["optimizer"].param_groups]
        [0.005, 0.001]
    """
    groups = [{"params": [p for p in reconstruction.parameters() if p.requires_grad], "lr": _RECONSTRUCTION_RATE}]
    if projection_weights := list(projections.parameters()):
        groups.append({"params": projection_weights, "lr": _PROJECTION_RATE})
    optimizer = torch.optim.Adam(groups, betas=_BETAS)
    scheduler: LRScheduler
    if math.isinf(steps):
        scheduler = MultiStepLR(optimizer, [])
    elif schedule == "step":
        scheduler = MultiStepLR(optimizer, [int(_STEP_AT * steps)], gamma=_FALL)
    else:
        scheduler = CosineAnnealingLR(optimizer, int(steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
