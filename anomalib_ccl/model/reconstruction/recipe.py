"""How a reconstruction network is trained where the user says nothing else."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from anomalib_ccl.training.schedules import MakeSchedule, step_schedule

_RECONSTRUCTION_RATE, _PROJECTION_RATE = 0.005, 0.001
_BETAS = (0.5, 0.999)


def adam(network: nn.Module, projections: nn.Module) -> Optimizer:
    """Make the paper's Adam: one learning rate for bottleneck and decoder, another for the projections.

    Args:
        network: A reconstruction network; what needs no gradient, as a teacher, is left out.
        projections: Its projections; they may have no weights.

    Returns:
        The optimizer.

    Example:
        >>> [group["lr"] for group in adam(nn.Linear(2, 2), nn.Linear(2, 2)).param_groups]
        [0.005, 0.001]
    """
    groups = [{"params": trained_weights(network), "lr": _RECONSTRUCTION_RATE}]
    if weights := trained_weights(projections):
        groups.append({"params": weights, "lr": _PROJECTION_RATE})
    return torch.optim.Adam(groups, betas=_BETAS)


def trained_weights(*modules: nn.Module) -> list[nn.Parameter]:
    """List the weights that need a gradient.

    Args:
        *modules: Modules, all or some of whose weights are trained.

    Returns:
        Their weights, without those of a frozen teacher.
    """
    return [weight for module in modules for weight in module.parameters() if weight.requires_grad]


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
    """

    optimizer: Callable[[nn.Module, nn.Module], Optimizer] = adam
    schedule: MakeSchedule = step_schedule
    gradient_norm: float = 5.0
    image_size: tuple[int, int] = (256, 256)
    batch_size: int = 16
    epochs: int = 100
    steps: int | None = None
    temperature: float = 0.05
    noise_probability: float = 0.309
