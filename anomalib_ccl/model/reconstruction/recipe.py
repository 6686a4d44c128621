"""How a reconstruction network is trained where the user says nothing else, and how far a training is."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from anomalib_ccl.names import check_choice

Schedule = Literal["step", "cosine"]


def check_schedule(schedule: str | None) -> None:
    """Refuse an unknown schedule."""
    if schedule is not None:
        check_choice("schedule", schedule, get_args(Schedule))


# The state of a LambdaLR does not hold its function, so a training that goes on follows its own length.
def step_schedule(optimizer: Optimizer, steps: float) -> LRScheduler:
    """Let all rates fall to a tenth at 80 % of the training, as the authors' configuration (not their code) does."""
    end = math.floor(0.8 * steps) if math.isfinite(steps) else steps
    return LambdaLR(optimizer, lambda step: 1.0 if step < end else 0.1)


def cosine_schedule(optimizer: Optimizer, steps: float) -> LRScheduler:
    """Let all rates fall to 0 along half a cosine."""
    return LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * min(1.0, step / steps))) / 2)


SCHEDULES: dict[str, Callable[[Optimizer, float], LRScheduler]] = {"step": step_schedule, "cosine": cosine_schedule}


class Progress(float):
    """The share of a training that is over, in [0, 1], 0 of one without an end; ``step`` counts its steps so far."""

    step: int

    def __new__(cls, step: int, steps: float) -> "Progress":
        """Make a float of the share."""
        progress = super().__new__(cls, min(1.0, step / steps))
        progress.step = step
        return progress


def adam(network: nn.Module, projections: nn.Module) -> Optimizer:
    """Make the paper's Adam: one learning rate for bottleneck and decoder, another for the projections."""
    groups = [{"params": trained_weights(network), "lr": 0.005}]
    if weights := trained_weights(projections):
        groups.append({"params": weights, "lr": 0.001})
    return torch.optim.Adam(groups, betas=(0.5, 0.999))


def trained_weights(*modules: nn.Module) -> list[nn.Parameter]:
    """List the weights that need a gradient."""
    return [weight for module in modules for weight in module.parameters() if weight.requires_grad]


@dataclass(frozen=True)
class View:
    """How far a second view may differ from its image; the defaults are the paper's for reverse distillation.

    Attributes:
        scale: Least and largest share of the image's area that the random crop takes.
        rotation: Largest rotation to either side, in degrees.
        blur_kernels: Least and largest side of the blur's kernel, in pixels, odd.
    """

    scale: tuple[float, float] = (0.8, 1.0)
    rotation: float = 15.0
    blur_kernels: tuple[int, int] = (23, 23)


@dataclass(frozen=True)
class Recipe:
    """Optimizer, lengths and sizes; the defaults are those of the paper (Fan et al., https://arxiv.org/abs/2412.04769).

    Attributes:
        optimizer: Makes the optimizer of a network and its projections.
        schedule: Makes the schedule of an optimizer's learning rates for so many steps, which may be infinite.
        gradient_norm: What the norm of all gradients together is at most. On realad, 82 % of the first epoch's steps
            exceeded 5 and none after the third.
        image_size: Height and width of the images, in pixels, which become the nearest multiples of the stride.
        batch_size: Images of a batch; a datamodule's own batch size is what counts.
        epochs: Length of a training.
        steps: Its length in optimizer steps, which takes the place of epochs.
        temperature: Temperature of both contrastive losses.
        noise_probability: Probability, per training step, of noise on the projected features.
        view: How far the second view may differ from its image.
    """

    optimizer: Callable[[nn.Module, nn.Module], Optimizer] = adam
    schedule: Callable[[Optimizer, float], LRScheduler] = step_schedule
    gradient_norm: float = 5.0
    image_size: tuple[int, int] = (256, 256)
    batch_size: int = 16
    epochs: int = 100
    steps: int | None = None
    temperature: float = 0.05
    noise_probability: float = 0.309
    view: View = View()
