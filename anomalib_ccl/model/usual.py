"""What is usual in the maps of a class: where each image of a product has an edge or a hole, each map is high."""

import torch
from torch import Tensor
from torch.nn import functional as F

# Pixels that share what is usual there; 4 KiB for each class at 256 pixels. Full maps were no better.
_BLOCK = 8

# Not all of it, because no two images of a product are alike; on realad, 0.5 to 0.8 make no difference.
_SHARE = 0.7


def in_blocks(anomaly_map: Tensor) -> Tensor:
    """Average maps of shape ``(B, 1, H, W)`` over blocks of 8 × 8 pixels."""
    return F.avg_pool2d(anomaly_map, _BLOCK)


def to_take_off(maps: Tensor) -> Tensor:
    """Take seven tenths of how high mean maps in blocks, of shape ``(K, 1, h, w)``, are above their lowest place."""
    return _SHARE * (maps.float() - maps.float().amin(dim=(-2, -1), keepdim=True))


def without_usual(anomaly_map: Tensor, usual: Tensor, index: Tensor) -> Tensor:
    """Take what is usual of the class of each image off its map; of an unknown product, the mean of all classes.

    Args:
        anomaly_map: Maps of shape ``(B, 1, H, W)``, at least 0.
        usual: What to take off, of each class, in blocks, of shape ``(K, 1, h, w)``, as :func:`to_take_off` gives it.
        index: The class of each image, of shape ``(B,)``, K for an unknown product.

    Returns:
        What is left, at least 0.
    """
    each = torch.cat([usual, usual.mean(dim=0, keepdim=True)]).index_select(0, index)
    size = (anomaly_map.shape[-2], anomaly_map.shape[-1])
    return (anomaly_map - F.interpolate(each, size, mode="bilinear")).clamp(min=0)
