"""How far a training is, and how its learning rates fall."""

import math
from collections.abc import Callable
from typing import Literal, get_args

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

Schedule = Literal["step", "cosine"]
MakeSchedule = Callable[[Optimizer, float], LRScheduler]

# The learning rates fall to a tenth when this share of the training is over.
_STEP_AT, _FALL = 0.8, 0.1


def check_schedule(schedule: str | None) -> None:
    """Refuse an unknown schedule.

    Args:
        schedule: Name of a schedule, or None for the one of a recipe.

    Raises:
        ValueError: If there is none of this name.
    """
    if schedule is not None and schedule not in get_args(Schedule):
        msg = f"unknown schedule {schedule!r}; choose one of {', '.join(get_args(Schedule))}"
        raise ValueError(msg)


def step_schedule(optimizer: Optimizer, steps: float) -> LRScheduler:
    """Let all rates fall to a tenth at 80 % of the training, as in the configuration of the paper's authors.

    A fault in their code never gives effect to it.

    Args:
        optimizer: The optimizer.
        steps: Optimizer steps of the whole training; infinite if it has no end, and then the rates never fall.

    Returns:
        The schedule, which counts steps.
    """
    return MultiStepLR(optimizer, [] if math.isinf(steps) else [int(_STEP_AT * steps)], gamma=_FALL)


def cosine_schedule(optimizer: Optimizer, steps: float) -> LRScheduler:
    """Let all rates fall to 0 along half a cosine.

    Args:
        optimizer: The optimizer.
        steps: Optimizer steps of the whole training; infinite if it has no end, and then the rates never fall.

    Returns:
        The schedule, which counts steps.
    """
    return MultiStepLR(optimizer, []) if math.isinf(steps) else CosineAnnealingLR(optimizer, int(steps))


class Progress(float):
    """The share of a training that is over, in [0, 1], which is 0 of a training without an end.

    Args:
        step: Optimizer steps taken.
        steps: Optimizer steps of the whole training; infinite if it has no end.

    Attributes:
        step: Optimizer steps taken, for what changes over a number of them, however long the training is.

    Example:
        >>> progress = Progress(50, steps=200)
        >>> progress, progress.step
        (0.25, 50)
    """

    step: int

    def __new__(cls, step: int, steps: float) -> "Progress":
        """Make a float of the share."""
        progress = super().__new__(cls, min(1.0, step / steps))
        progress.step = step
        return progress


SCHEDULES: dict[Schedule, MakeSchedule] = {"step": step_schedule, "cosine": cosine_schedule}
