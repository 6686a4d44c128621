"""How long and how fast to learn: the paper's training recipe (Fan et al., https://arxiv.org/abs/2412.04769)."""

import math
from typing import Literal, get_args

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from .torch_model import CCLModel

Schedule = Literal["step", "cosine"]

EPOCHS = 100
_RECONSTRUCTION_RATE, _PROJECTION_RATE = 0.005, 0.001
_BETAS = (0.5, 0.999)
# The learning rates fall to a tenth when this share of the training is over.
_STEP_AT, _FALL = 0.8, 0.1


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


def adam(model: CCLModel, steps: float, schedule: Schedule = "step") -> OptimizerLRScheduler:
    """Configure Adam with one learning rate for the projections and another for bottleneck and decoder.

    Args:
        model: The network; what needs no gradient is left out.
        steps: Optimizer steps of the whole training; infinite if it has no end, and then the rates never fall.
        schedule: ``"step"`` is the paper's: both rates fall to a tenth at 80 % of the training; ``"cosine"`` has them
            fall to 0 along half a cosine.

    Returns:
        The optimizer, and its schedule, which counts steps.

    Example:
        >>> configured = adam(CCLModel("resnet18", pre_trained=False), steps=10)
        >>> [group["lr"] for group in configured["optimizer"].param_groups]
        [0.005, 0.001]
    """
    groups = [{"params": [p for p in model.network.parameters() if p.requires_grad], "lr": _RECONSTRUCTION_RATE}]
    if projections := list(model.projections.parameters()):
        groups.append({"params": projections, "lr": _PROJECTION_RATE})
    optimizer = torch.optim.Adam(groups, betas=_BETAS)
    scheduler: LRScheduler
    if math.isinf(steps):
        scheduler = MultiStepLR(optimizer, [])
    elif schedule == "step":
        scheduler = MultiStepLR(optimizer, [int(_STEP_AT * steps)], gamma=_FALL)
    else:
        scheduler = CosineAnnealingLR(optimizer, int(steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
