"""Projection layers: the contrastive losses shape projected features, so that the teacher's stay as they are."""

from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_ccl.model.normalized_activation import NormalizedActivation
from anomalib_ccl.names import check_choice

Projection = Literal["standard", "light", "none"]


def projection_layer(channels: int, kind: Projection = "standard") -> nn.Module:
    """Build the projection of one scale: four 3 × 3 convolutions C → C/2 → C/4 → C/2 → C.

    Each is followed by instance norm and leaky ReLU (Fan et al., https://arxiv.org/abs/2412.04769).

    Args:
        channels: Channels C of the scale.
        kind: ``"standard"`` is the paper's layer; ``"light"`` makes each convolution depthwise-separable; ``"none"``
            leaves the features as they are, which is plain reverse distillation.

    Returns:
        A module that maps ``(B, C, H, W)`` to the same shape. Its instance norm needs more than one position.

    Raises:
        InputError: If the kind is unknown.

    Example:
        >>> projection_layer(16)(torch.zeros(2, 16, 8, 8)).shape
        torch.Size([2, 16, 8, 8])
        >>> weights = lambda kind: sum(p.numel() for p in projection_layer(256, kind).parameters())
        >>> round(weights("standard") / weights("light"))
        8
    """
    check_choice("projection", kind, get_args(Projection))
    if kind == "none":
        return nn.Identity()
    half, quarter = max(1, channels // 2), max(1, channels // 4)  # of pixels, there are three channels
    widths = [channels, half, quarter, half, channels]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        if kind == "light":
            layers += [nn.Conv2d(before, before, 3, padding=1, groups=before), nn.Conv2d(before, after, 1)]
        else:
            layers.append(nn.Conv2d(before, after, kernel_size=3, padding=1))
        # The second keeps the names that the weights have had in checkpoints.
        layers += [NormalizedActivation(), nn.Identity()]
    return nn.Sequential(*layers)


def added_at_unit_scale(features: Tensor, projected: Tensor) -> Tensor:
    """Add features to their projections, at one mean and one deviation for each image.

    The backbones' own scales, 6 to 7 in ``tf_efficientnet_lite0``, would drown projections and noise, of about 1.
    """
    # The projections first: the sum has their layout, in which the convolutions that follow are faster.
    return projected + F.layer_norm(features, features.shape[1:])


def disturbed(projected: Tensor) -> Tensor:
    """Add unit Gaussian noise at half of the positions.

    Args:
        projected: Projected features of one scale, of shape ``(B, C, H, W)``.

    Returns:
        The same with noise.

    Example:
        >>> noise = disturbed(torch.zeros(1, 8, 100, 100))
        >>> 0.48 < (noise != 0).float().mean() < 0.52
        tensor(True)
    """
    # In this order whatever that of the map, so that a seed stands for the same noise.
    noise = torch.randn_like(projected, memory_format=torch.contiguous_format)
    return projected + noise * torch.bernoulli(torch.full_like(projected[:, :1], 0.5))
