"""How long and how fast to learn: the paper's training recipe (Fan et al., https://arxiv.org/abs/2412.04769)."""

import math

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from .torch_model import CCLModel

EPOCHS = 100
_RECONSTRUCTION_RATE, _PROJECTION_RATE = 0.005, 0.001
_BETAS = (0.5, 0.999)
# The learning rates fall to a tenth when this share of the training is over.
_STEP_AT, _FALL = 0.8, 0.1


def adam_with_step(model: CCLModel, steps: float) -> OptimizerLRScheduler:
    """Configure Adam with one learning rate for the projections and another for bottleneck and decoder.

    Args:
        model: The network; what needs no gradient is left out.
        steps: Optimizer steps of the whole training; infinite if it has no end, and then the rates never fall.

    Returns:
        The optimizer, and its schedule, which counts steps.

    Example:
        >>> configured = adam_with_step(CCLModel("resnet18", pre_trained=False), steps=10)
        >>> [group["lr"] for group in configured["optimizer"].param_groups]
        [0.005, 0.001]
    """
    groups = [{"params": [p for p in model.network.parameters() if p.requires_grad], "lr": _RECONSTRUCTION_RATE}]
    if projections := list(model.projections.parameters()):
        groups.append({"params": projections, "lr": _PROJECTION_RATE})
    optimizer = torch.optim.Adam(groups, betas=_BETAS)
    milestones = [] if math.isinf(steps) else [int(_STEP_AT * steps)]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=_FALL)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
