"""Prototypes of classes, and how far from them a product is unknown."""

from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn import functional as F

from anomalib_ccl.errors import InputError

# The share of a normal distribution below its mean plus one standard deviation.
_ONE_SIGMA = NormalDist().cdf(1)
_NOVELTY_SIGMAS = 4.0
# Large defects change an image, too, but do not bring it near another product. Each product of realad left out once,
# pooled features of the teacher: with and without this, of its images 97 and 98 % are called unknown; of good images of
# the known products 0.6 and 0.7 %, of their defective ones 4 and 16 % (stored features, once).
_NOVELTY_SHARE = 0.25
# Identical training images all lie on their prototype; an angle of 8° is no other product even then.
_MIN_NOVELTY_DISTANCE = 0.01


def counts_of(labels: Tensor) -> Tensor:
    """Count the images of each class."""
    counts = torch.bincount(labels)
    if len(counts) == 0 or not counts.all():
        missing = (counts == 0).nonzero().flatten().tolist()
        msg = f"calibration needs at least one image of each class, but has {len(labels)} images and none of "
        msg += f"class {', '.join(map(str, missing))}" if missing else "any class"
        raise InputError(msg)
    return counts


def prototypes_of(unit: Tensor, labels: Tensor) -> Tensor:
    """Find the mean direction of the embeddings of each class."""
    return F.normalize(torch.stack([unit[labels == c].mean(0) for c in range(int(labels.max()) + 1)]), dim=1)


def novelty_thresholds_of(unit: Tensor, labels: Tensor, prototypes: Tensor, known: Tensor | None = None) -> Tensor:
    """Find the cosine distance to the prototype of each class that no image of it has.

    It is larger than that of hardly any image, and than a share of the way to the next prototype, of this class or of
    those known besides. Distances are positive and skewed, so a median and a spread of their logarithms describe them.
    Each class has a median of its own, because images of some products differ more than those of others; the spread is
    that of all.
    """
    distances = (1 - (unit * prototypes[labels]).sum(1)).clamp(min=_MIN_NOVELTY_DISTANCE**2).log()
    medians = torch.stack([distances[labels == c].quantile(0.5) for c in range(len(prototypes))])
    low, high = torch.quantile(distances - medians[labels], distances.new_tensor([1 - _ONE_SIGMA, _ONE_SIGMA]))
    of_images = (medians + _NOVELTY_SIGMAS * (high - low) / 2).exp().clamp(min=_MIN_NOVELTY_DISTANCE)
    apart = (1 - prototypes @ prototypes.T).fill_diagonal_(torch.inf)
    if known is not None:
        apart = torch.cat([apart, 1 - prototypes @ known.T], dim=1)
    nearest = apart.amin(dim=1)
    return of_images.maximum(torch.where(nearest.isinf(), 0, _NOVELTY_SHARE * nearest))  # infinite: there is no other
