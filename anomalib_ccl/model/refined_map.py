"""An anomaly map that is not drowned by what is hard to reconstruct."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from anomalib_ccl.model.anomaly_map import smooth

# For images of 256 pixels: less than the paper's 4, because the coarser scales are smooth as they are.
_SIGMA, _SIDE = 2.0, 256


def refined_map(features: Sequence[Tensor], reconstructed: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    r"""Add up weighted cosine distances of all scales, and smooth them in proportion to the image.

    Each distance is multiplied by :math:`\sqrt{\|d\| / \overline{\|d\|}}`, the norm of the reconstruction relative to
    its mean over the image: where the decoder expects little, as on the background, directions are noise. What this
    brings over :func:`~anomalib_ccl.model.anomaly_map.anomaly_map`, the paper's, is in ``docs/results.md``.

    Args:
        features: The teacher's maps, per scale of shape ``(B, C_l, H_l, W_l)``, fine to coarse.
        reconstructed: The decoder's maps, in the same shapes.
        size: Height and width of the images, in pixels.

    Returns:
        The anomaly map, of shape ``(B, 1, H, W)``, at least 0.

    Example:
        >>> features = [torch.ones(2, 8, 16, 16), torch.ones(2, 16, 8, 8)]
        >>> distances = refined_map(features, [features[0], -features[1]], size=(64, 64))
        >>> distances.shape, round(distances.amax().item(), 4)
        (torch.Size([2, 1, 64, 64]), 2.0)
    """
    distances = [_weighted(*pair) for pair in zip(features, reconstructed, strict=True)]
    upsampled = [F.interpolate(d, size, mode="bilinear", align_corners=True) for d in distances]
    return smooth(torch.stack(upsampled).sum(dim=0), _SIGMA * min(size) / _SIDE)


def _weighted(features: Tensor, reconstructed: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(reconstructed, dim=1, keepdim=True)
    relative = norm / norm.mean(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(norm.dtype).tiny)
    return (1 - F.cosine_similarity(features, reconstructed)[:, None]).clamp(min=0) * relative.sqrt()
