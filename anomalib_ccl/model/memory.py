"""What the patches of each class look like: a memory of normal patches for each, looked up at inference.

For one class this is PatchCore (Roth et al., CVPR 2022, https://arxiv.org/abs/2106.08265). Here each class has a memory
of its own and only that of the recognised class is searched, so that the search costs the same however many classes
there are, and a patch of one class is never excused by another class.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from anomalib.models.components.base import DynamicBufferMixin
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.nn import functional as F

from anomalib_ccl.model.anomaly_map import smooth
from anomalib_ccl.model.patches import PatchSample, k_centre
from anomalib_ccl.model.precision import upcast, without_autocast

# Wider patches are projected to their principal components: 500 vectors of 192 channels take 0.4 MB of a file.
_MOST_CHANNELS = 192
_COMPONENT_SAMPLE = 20_000
_SIGMA, _SIDE = 2.0, 256
# Of k-means. On realad they brought 3 points of pixel AUROC; with many, vectors leave rare patches.
_STEPS = 5


class ClassMemory(DynamicBufferMixin):
    r"""Distance of each patch to the nearest one in the memory of the image's class.

    Args:
        size: Vectors M of each class; 0 is no memory.

    Attributes:
        vectors: Chosen patches of each class, of shape ``(K, M, C)``; K = 0 before :meth:`build`.
        components: Principal components that wide patches are projected to, of shape ``(C_patch, C)``; empty where
            patches are as they are.

    Example:
        >>> memory, sample = ClassMemory(size=4), PatchSample()
        >>> patches = torch.rand(2, 8, 6, 6)
        >>> sample.add(patches, torch.tensor([0, 1]), torch.tensor([0, 1]))
        >>> owners = memory.build(sample)
        >>> memory.vectors.shape, owners.shape
        (torch.Size([2, 4, 8]), torch.Size([2, 4]))
        >>> memory(patches, torch.tensor([0, 2]), size=(48, 48)).shape  # the second is of an unknown class
        torch.Size([2, 1, 48, 48])
    """

    vectors: Tensor
    components: Tensor

    def __init__(self, size: int = 0) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("vectors", torch.empty(0, size, 0))
        self.register_buffer("components", torch.empty(0, 0))

    @property
    def is_built(self) -> bool:
        """Whether there is anything to look up."""
        return len(self.vectors) > 0

    def reset(self) -> None:
        """Be as before :meth:`build`."""
        self.vectors, self.components = self.vectors.new_empty(0, self.size, 0), self.components.new_empty(0, 0)

    def build(self, sample: PatchSample, add: bool = False) -> Tensor:
        """Choose the memory of each class from a sample of its patches: k-centre, then a few steps of k-means.

        k-centre alone keeps the strangest patches, and tells little of what lies between them.

        Args:
            sample: Patches of classes 0 to K - 1, or of the new ones if classes are added.
            add: Whether the classes come behind those known, whose memories stay to the bit.

        Returns:
            The number of the image that most of the patches behind each vector are from, of shape ``(K, M)``; -1 where
            no image has most of them.
        """
        labels = sorted(sample.patches)
        device = self.vectors.device
        chosen, owners = [], []
        with without_autocast(device):
            if not add:
                self.components = _components([sample.patches[label] for label in labels]).to(device)
            for label in labels:
                points = self._project(sample.patches[label].to(device).float())
                vectors, members = _clustered(points, k_centre(points, self.size))
                chosen.append(vectors)
                owners.append(_owners(sample.images[label].to(device), members, self.size))
        new = torch.stack(chosen)
        self.vectors = torch.cat([self.vectors, new]) if add else new
        return torch.stack(owners)

    def remove(self, index: int) -> None:
        """Forget a class.

        Args:
            index: Its index, from 0 to K - 1. Those above it move down by one.
        """
        self.vectors = self.vectors[torch.arange(len(self.vectors), device=self.vectors.device) != index]

    def forward(self, patches: Tensor, index: Tensor, size: tuple[int, int], excluded: Tensor | None = None) -> Tensor:
        """Look up how far each patch is from the memory of its image's class.

        Args:
            patches: What :func:`patches_of` gives, of shape ``(B, C, h, w)``.
            index: Class of each image, of shape ``(B,)``; K for an unknown one, which is looked up in all memories.
            size: Height and width of the map, in pixels.
            excluded: Vectors that do not count, of shape ``(B, M)``: those from the image itself, for scores that it
                has no part in.

        Returns:
            Euclidean distances, smoothed, of shape ``(B, 1, H, W)``, at least 0.
        """
        with without_autocast(patches.device):  # differences of squares need all digits
            nearest = self._nearest(upcast(patches).flatten(2).transpose(1, 2), index, excluded)
        distance = nearest.clamp(min=0).sqrt()[:, None].unflatten(2, patches.shape[-2:])
        upsampled = F.interpolate(distance, size, mode="bilinear", align_corners=False)
        return smooth(upsampled, _SIGMA * min(size) / _SIDE)

    def _nearest(self, patches: Tensor, index: Tensor, excluded: Tensor | None) -> Tensor:
        """Squared distances of patches ``(B, P, C)`` to the nearest vectors, of shape ``(B, P)``."""
        flat = self._project(patches)
        known = len(self.vectors)
        squared = _squared_distances(flat, self.vectors.index_select(0, index.clamp(max=known - 1)))
        if excluded is not None:
            squared = squared.masked_fill(excluded[:, None], torch.inf)
        nearest = squared.amin(dim=2)
        unknown = (index == known)[:, None]
        if torch.compiler.is_compiling():  # a branch of an exported graph
            return torch.cond(unknown.any(), self._nearest_of_all, _as_it_is, (flat, nearest, unknown))
        return self._nearest_of_all(flat, nearest, unknown) if unknown.any() else nearest

    def _nearest_of_all(self, flat: Tensor, nearest: Tensor, unknown: Tensor) -> Tensor:
        """Look patches of unknown products up in all memories."""
        of_all = _squared_distances(flat, self.vectors.flatten(0, 1)[None]).amin(dim=2)
        return torch.where(unknown, of_all, nearest)

    def _project(self, points: Tensor) -> Tensor:
        """Project patches of shape ``(…, C)`` to the principal components, if there are any."""
        return points @ self.components if len(self.components) else points

    def _load_from_state_dict(self, *args: Any) -> None:  # noqa: ANN401  # torch's
        """Take a memory of any size."""
        super()._load_from_state_dict(*args)
        self.size = self.vectors.shape[1]


def _clustered(points: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Move vectors to the middle of the points that are nearest to them; give them and the vector of each point."""
    vectors = points[first]
    if len(points) <= len(first):  # each point is a vector
        return vectors, _squared_distances(points[None], vectors[None])[0].argmin(dim=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer points differ than there are vectors
        found = KMeans(len(first), init=vectors.cpu().numpy(), n_init=1, max_iter=_STEPS).fit(points.cpu().numpy())
    return torch.from_numpy(found.cluster_centers_).to(points), torch.from_numpy(found.labels_).long().to(points.device)


def _owners(images: Tensor, members: Tensor, size: int) -> Tensor:
    """The image that more than half of the members of each vector are from; -1 where there is none."""
    numbers, image = images.unique(return_inverse=True)
    counts = torch.bincount(members * len(numbers) + image, minlength=size * len(numbers)).view(size, -1)
    most, own = counts.max(dim=1)
    return torch.where(2 * most > counts.sum(dim=1), numbers[own], -1)


def _squared_distances(points: Tensor, vectors: Tensor) -> Tensor:
    """Squared distances of points ``(B, P, C)`` to vectors ``(B, M, C)``: by a matrix product, which exporters have."""
    lengths = points.square().sum(dim=2, keepdim=True) + vectors.square().sum(dim=2)[:, None]
    return lengths - 2 * points @ vectors.transpose(1, 2)


def _as_it_is(flat: Tensor, nearest: Tensor, unknown: Tensor) -> Tensor:
    """Leave the distances of known products; a branch of ``torch.cond`` may not return its input."""
    del flat, unknown
    return nearest.clone()


def _components(samples: Sequence[Tensor]) -> Tensor:
    """Find the principal components of wide patches, which keep distances better than a random projection."""
    channels, count = samples[0].shape[1], sum(map(len, samples))
    if min(channels, count) <= _MOST_CHANNELS:
        return torch.empty(0, 0)
    share = max(1, count // _COMPONENT_SAMPLE)
    points = torch.cat([s[::share] for s in samples]).float()
    return torch.linalg.eigh(points.T.cov()).eigenvectors[:, -_MOST_CHANNELS:]
