"""Patches: what each position of an image looks like, and a bounded sample of them for each class."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from anomalib_ccl.model.precision import upcast, without_autocast

# Values of a class's patches that are kept while its memory is chosen: 8 MiB in half precision.
_SAMPLE_VALUES = 2**22


def patches_of(targets: Sequence[Tensor]) -> Tensor:
    """Describe each position of images by the features around it, at all scales.

    Each scale is L2-normalised at each position, so that none outweighs the others; the coarsest is averaged over 3 × 3
    positions before, which shows wide, faint changes. All are brought to the grid of the middle scale and concatenated.

    Args:
        targets: The teacher's maps, one for each scale, fine to coarse, of shape ``(B, C_l, H_l, W_l)``.

    Returns:
        Patches of shape ``(B, Σ C_l, h, w)``, where ``h, w`` is the size of the middle scale.

    Example:
        >>> patches_of([torch.rand(2, 8, 16, 16), torch.rand(2, 16, 8, 8), torch.rand(2, 32, 4, 4)]).shape
        torch.Size([2, 56, 8, 8])
    """
    height, width = targets[len(targets) // 2].shape[-2:]
    *finer, coarsest = (upcast(maps) for maps in targets)
    averaged = F.avg_pool2d(coarsest, kernel_size=3, stride=1, padding=1, count_include_pad=False)
    scales = []
    for maps in (*finer, averaged):
        unit = F.normalize(maps, dim=1)
        rows, columns = unit.shape[-2:]
        if rows % height == 0 and columns % width == 0:
            unit = F.avg_pool2d(unit, kernel_size=(rows // height, columns // width))
        else:
            unit = F.interpolate(unit, size=(height, width), mode="bilinear", align_corners=False)
        scales.append(unit)
    return torch.cat(scales, dim=1)


def pooled_features(features: Sequence[Tensor]) -> Tensor:
    """Describe each image by one vector: the mean of its features over all positions, at each scale.

    Example:
        >>> pooled_features([torch.ones(1, 4, 8, 8), torch.ones(1, 1, 4, 4)])
        tensor([[0.5000, 0.5000, 0.5000, 0.5000, 1.0000]])
    """
    return torch.cat([F.normalize(f.float().mean(dim=(-2, -1)), dim=1) for f in features], dim=1)


def k_centre(points: Tensor, count: int) -> Tensor:
    """Choose points that cover all others: greedily, each time the one farthest from those chosen (Gonzalez, 1985).

    Args:
        points: Points of shape ``(N, C)``.
        count: How many to choose; with fewer points, some are chosen again.

    Returns:
        Their indices, of shape ``(count,)``; the first is the point nearest to the mean.

    Example:
        >>> k_centre(torch.tensor([[0.0], [0.1], [1.0], [0.4]]), 3)
        tensor([3, 2, 0])
    """
    points = points.float()
    squares = points.square().sum(dim=1)
    chosen = torch.empty(count, dtype=torch.long, device=points.device)
    nearest = torch.full_like(squares, torch.inf)
    following = (points - points.mean(dim=0)).square().sum(dim=1).argmin()
    for index in range(count):
        chosen[index] = following
        to_chosen = squares - 2 * (points @ points[following]) + squares[following]
        nearest = torch.minimum(nearest, to_chosen)
        following = nearest.argmax()
    return chosen


class PatchSample:
    """A bounded random sample of the patches of each class, the same in whatever batches and processes they come.

    Attributes:
        patches: Of each class the patches, of shape ``(n, C)`` in half precision.
        images: Of each class the number of the image that each patch is from, of shape ``(n,)``.
    """

    def __init__(self) -> None:
        self.patches: dict[int, Tensor] = {}
        self.images: dict[int, Tensor] = {}
        self._priority: dict[int, Tensor] = {}

    def add(self, patches: Tensor, labels: Tensor, images: Tensor) -> None:
        """Add the patches of a batch."""
        flat = patches.flatten(2).transpose(1, 2).half().cpu()
        positions = flat.shape[1]
        # By the image's own number, so that neither the size of batches nor the number of processes matters. In double
        # precision, because equal ones, of which single precision has many, would be kept in the order of the batches.
        seeded = [torch.Generator().manual_seed(number) for number in images.tolist()]
        drawn = [torch.rand(positions, generator=generator, dtype=torch.float64) for generator in seeded]
        owners = images.cpu()[:, None].expand(-1, positions)
        for label in labels.unique().tolist():
            own = (labels == label).cpu()
            priority = torch.stack(drawn)[own].flatten()
            self._keep(label, flat[own].flatten(0, 1), owners[own].flatten(), priority)

    def merge(self, other: "PatchSample") -> None:
        """Add the sample of another process."""
        for label in other.patches:
            self._keep(label, other.patches[label], other.images[label], other._priority[label])

    def _keep(self, label: int, patches: Tensor, images: Tensor, priority: Tensor) -> None:
        """Keep the patches of highest priority, so that each has the same chance, whenever it came."""
        if label in self.patches:
            with without_autocast(patches.device):  # which knows one half precision only, and no double
                patches = torch.cat([self.patches[label], patches])
                images = torch.cat([self.images[label], images])
                priority = torch.cat([self._priority[label], priority])
        size = min(_SAMPLE_VALUES // patches.shape[1], len(priority))
        kept = priority.topk(size).indices
        self.patches[label], self.images[label], self._priority[label] = patches[kept], images[kept], priority[kept]
