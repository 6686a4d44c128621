"""Calibration of a network by normal images: its classes, its memory and its limits."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from anomalib_ccl.data.passes import Labelled
from anomalib_ccl.errors import InputError
from anomalib_ccl.model.outputs import Look, embedding_of
from anomalib_ccl.model.patches import PatchSample, patches_of
from anomalib_ccl.model.prototypes import counts_of
from anomalib_ccl.model.torch_model import CCLModel
from anomalib_ccl.training.feature_cache import Encoded
from anomalib_ccl.training.gathering import gathered
from anomalib_ccl.training.views import retaken

# Encodes images or tiles, as a reconstruction network does, by what they are known by.
Encode = Callable[[Tensor, Sequence[str]], Encoded]
_EncodeTiles = Callable[[Labelled], Iterable[Encoded]]


class NormalScores(NamedTuple):
    """Scores of the images that a network was calibrated by.

    Attributes:
        scores: Raw scores, of shape ``(N,)``, in the order of the data set.
        labels: Their classes, of shape ``(N,)``.
        embeddings: Their embeddings, of shape ``(N, D)``.
    """

    scores: Tensor
    labels: Tensor
    embeddings: Tensor


@torch.no_grad()
def calibrate(
    network: CCLModel,
    images: Callable[[str], Iterable[Labelled]],
    add: bool = False,
    encode: Encode | None = None,
) -> NormalScores:
    """Calibrate a network by normal images.

    Where there is a memory, a first pass collects patches for it. The last pass scores the images as new ones: by the
    memory without the vectors that are mostly from the image itself, and by the reconstruction of a slightly changed
    image (see :func:`~anomalib_ccl.training.views.retaken`). Where both maps are fused, the pass before that finds the
    level of each. On several processes, each sees its share of the images, and all get the same result.

    Args:
        network: The network, in eval mode.
        images: Makes a pass over the images; what it is called with describes the pass. With ``add``, labels are those
            of the new classes, from 0.
        add: Whether the classes come behind those known, which stay to the bit.
        encode: What encodes the images as they are, such as a cache; the network if not given.

    Returns:
        The scores that the limits were found from.

    Raises:
        InputError: If a class has no image, or a score or a feature is NaN or infinite.
    """
    if not add:
        network.calibration.reset()
        network.memory.reset()

    def encoded(batch: Labelled) -> Iterator[Encoded]:
        for place, tile in enumerate(network.tiling.cut(batch.images)):
            names = network.tiling.names(batch.paths, place)
            yield network.network.encode(tile) if encode is None else encode(tile, names)

    first = len(network.calibration.prototypes)
    owners = _remember(network, images, encoded, add) if network.memory.size else None
    before, levels = network.calibration.levels, None
    if owners is not None and network.reconstructs:
        found = _each(network, images, "Normal levels", encoded, _levels_of, first, owners)
        levels = _medians(found.scores, found.labels)
        network.calibration.levels = torch.cat([before[:first], levels])
    found = _each(network, images, "Calibration", encoded, _score_of, first, owners)
    scores = found.scores[:, 0]
    if invalid := int((~scores.isfinite()).sum()):
        msg = (
            f"{invalid} of the {len(scores)} normal images have a score of NaN or infinity, so the model has diverged; "
            "train it with a lower learning rate or in full precision"
        )
        raise InputError(msg)
    network.calibration.levels = before
    change = network.calibration.add if add else network.calibration.fit
    change(found.embeddings, scores, found.labels, levels)
    return NormalScores(scores, found.labels, found.embeddings)


class _Found(NamedTuple):
    embeddings: Tensor  # (N, D)
    scores: Tensor  # (N, S)
    labels: Tensor  # (N,)


def _remember(
    network: CCLModel, images: Callable[[str], Iterable[Labelled]], encoded: _EncodeTiles, add: bool
) -> Tensor:
    """Build the memory of each class; give the number of the image that each vector is from."""
    sample = PatchSample()
    for batch in images("Memory"):
        tiles = [patches_of(targets).flatten(2) for targets, _ in encoded(batch)]
        sample.add(torch.cat(tiles, dim=2), batch.labels, batch.numbers)
    every = PatchSample()
    for own in gathered(sample):
        every.merge(own)
    counts_of(torch.tensor(sorted(every.patches), dtype=torch.long))
    if not all(patches.isfinite().all() for patches in every.patches.values()):
        msg = "features of normal images are NaN or infinite; train and calibrate in full precision"
        raise InputError(msg)
    return network.memory.build(every, add)


def _each(
    network: CCLModel,
    images: Callable[[str], Iterable[Labelled]],
    description: str,
    encoded: _EncodeTiles,
    scores_of: Callable[[CCLModel, list[Look], Tensor, tuple[int, int], Tensor | None], Tensor],
    first: int,
    owners: Tensor | None,
) -> _Found:
    """Look at each image in a pass, and score it with no part of its own in the score."""
    parts = []
    for batch in images(description):
        looks = _looks(network, batch, encoded)
        excluded = None if owners is None else owners[batch.labels] == batch.numbers[:, None]
        if excluded is not None:  # the only image of its class has nothing else to be compared with
            excluded &= ~excluded.all(dim=1, keepdim=True)
        size = network.tiling.tile_size((batch.images.shape[-2], batch.images.shape[-1]))
        scores = scores_of(network, looks, batch.labels + first, size, excluded)
        parts.append((batch.numbers, embedding_of(looks).float(), scores.float(), batch.labels))
    own = tuple(torch.cat(values) for values in zip(*parts, strict=True))
    joined = zip(*gathered(own), strict=True)
    every = [torch.cat([x.to(mine.device) for x in of_all]) for mine, of_all in zip(own, joined, strict=True)]
    order = every[0].argsort()
    return _Found(*(values[order] for values in every[1:]))


def _looks(network: CCLModel, batch: Labelled, encoded: _EncodeTiles) -> list[Look]:
    """See images as new ones, tile by tile: those that a reconstruction was trained on, slightly changed."""
    size = network.tiling.tile_size((batch.images.shape[-2], batch.images.shape[-1]))
    if not network.reconstructs:
        return [network.see(*maps, size) for maps in encoded(batch)]
    views = retaken(batch.images, batch.numbers)
    if not network.memory.size:
        return network.look(views)
    # The memory is of images as they are.
    tiles = zip(network.tiling.cut(views), encoded(batch), strict=True)
    return [network.see(*network.network.encode(tile), size, targets) for tile, (targets, _) in tiles]


def _score_of(
    network: CCLModel, looks: list[Look], index: Tensor, size: tuple[int, int], excluded: Tensor | None
) -> Tensor:
    """The score of the fused map, of shape ``(B, 1)``."""
    return network.score(network.tiling.merge([network.fuse(look, index, size, excluded) for look in looks]))


def _levels_of(
    network: CCLModel, looks: list[Look], index: Tensor, size: tuple[int, int], excluded: Tensor | None
) -> Tensor:
    """The scores of the reconstruction's and of the memory's map, of shape ``(B, 2)``."""
    maps = [network.maps(look, index, size, excluded) for look in looks]
    merged = [network.tiling.merge(list(of_all)) for of_all in zip(*maps, strict=True)]
    return torch.cat([network.score(one) for one in merged], dim=1)


def _medians(scores: Tensor, labels: Tensor) -> Tensor:
    """The median of each class and, last, of all, of shape ``(K + 1, S)``; no map is magnified without bounds."""
    found, labels = scores.cpu(), labels.cpu()  # on a GPU, a median is refused where all must be deterministic
    of_all = found.median(dim=0).values
    of_class = [found[labels == c].median(dim=0).values for c in range(int(labels.max()) + 1)]
    least = torch.where(of_all > 0, 0.01 * of_all, 1.0)
    return torch.stack([*of_class, of_all]).maximum(least).to(scores.device)
