"""An anomaly map that is not drowned by what is hard to reconstruct, nor blind to wide, faint defects."""

from collections.abc import Sequence

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor
from torch.nn import functional as F

# For images of 256 pixels: less than the paper's 4, because the coarser scales are smooth as they are.
_SIGMA, _SIDE = 2.0, 256
# Averaged distances are about this much smaller than those of the coarsest scale itself.
_WEIGHT = 2.0


def refined_map(features: Sequence[Tensor], reconstructed: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    r"""Add up weighted cosine distances of all scales and of the coarsest scale's surroundings, and smooth them.

    It differs from :func:`~anomalib_ccl.model.anomaly_map.anomaly_map`, the paper's, in three ways; what each of them
    brings is on the page of findings in ``docs/``:

    - Each distance is multiplied by :math:`\sqrt{\|d\| / \overline{\|d\|}}`, the norm of the reconstruction relative to
      its mean over the image: where the decoder expects little, as on the background, directions are noise.
    - A further map compares the coarsest features and their reconstructions, both averaged over 3 × 3 positions. A
      wide, faint change, such as an uneven surface, is less than the noise of single positions, but not of averages.
    - The smoothing is in proportion to the image.

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
        (torch.Size([2, 1, 64, 64]), 6.0)
    """
    distances = [_weighted(*pair) for pair in zip(features, reconstructed, strict=True)]
    distances.append(_WEIGHT * _distance(*(_averaged(maps[-1]) for maps in (features, reconstructed))))
    upsampled = [F.interpolate(d, size, mode="bilinear", align_corners=True) for d in distances]
    sigma = _SIGMA * min(size) / _SIDE
    kernel = 2 * int(4 * sigma) + 1
    return gaussian_blur2d(torch.stack(upsampled).sum(dim=0), (kernel, kernel), (sigma, sigma))


def _distance(features: Tensor, reconstructed: Tensor) -> Tensor:
    return (1 - F.cosine_similarity(features, reconstructed)[:, None]).clamp(min=0)


def _weighted(features: Tensor, reconstructed: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(reconstructed, dim=1, keepdim=True)
    relative = norm / norm.mean(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(norm.dtype).tiny)
    return _distance(features, reconstructed) * relative.sqrt()


def _averaged(maps: Tensor) -> Tensor:
    return F.avg_pool2d(maps, kernel_size=3, stride=1, padding=1, count_include_pad=False)
