"""What normal images tell of their classes: levels and spreads of scores, limits, prototypes."""

from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn import functional as F

# The share of a normal distribution below its mean plus one standard deviation.
_ONE_SIGMA = NormalDist().cdf(1)
# Measured with the five products of realad known: at 3, 4 and 5, of images of the sample data 96, 83 and 68 % are
# called unknown; of good images of the known products 1.6, 0 and 0 %, of their defective images 11, 4 and 0 %.
_NOVELTY_SIGMAS = 4.0
# Identical training images all lie on their prototype; an angle of 8° is no other product even then.
_MIN_NOVELTY_DISTANCE = 0.01
_MIN_LIMIT = 1e-6


def check_rate(false_alarm_rate: float) -> None:
    """Refuse what is no false-alarm rate.

    Args:
        false_alarm_rate: Share of normal images that may be called anomalous.

    Raises:
        ValueError: If it is out of its range, (0, 0.5].
    """
    if not 0 < false_alarm_rate <= 0.5:
        msg = f"false_alarm_rate must lie in (0, 0.5], got {false_alarm_rate}"
        raise ValueError(msg)


def limits_at(location: Tensor, scale: Tensor, false_alarm_rate: float) -> Tensor:
    """Compute limits that normal images exceed with a false-alarm rate.

    Args:
        location: Levels of the raw score, of any shape.
        scale: Spreads of the raw score, in the same shape.
        false_alarm_rate: Share of normal images that exceed the limit, in (0, 0.5].

    Returns:
        The limits, in the same shape, greater than 0.

    Example:
        >>> limits_at(torch.tensor([2.0, 3.0]), torch.tensor([0.1, 0.2]), false_alarm_rate=0.5)
        tensor([2., 3.])
    """
    z = NormalDist().inv_cdf(1 - false_alarm_rate)
    return (location + z * scale).clamp(min=_MIN_LIMIT)


def location_and_scale(values: Tensor) -> tuple[Tensor, Tensor]:
    """Find the median and half the width of the middle 68 % of values.

    Args:
        values: Values of shape ``(N,)``.

    Returns:
        Two scalars.
    """
    low, median, high = torch.quantile(values, values.new_tensor([1 - _ONE_SIGMA, 0.5, _ONE_SIGMA]))
    return median, (high - low) / 2


def of_each_class(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Find location and scale of the scores of each class.

    Args:
        scores: Scores of shape ``(N,)``.
        labels: Their classes, of shape ``(N,)``, integers from 0 to K - 1, each at least once.

    Returns:
        The locations and the scales, of shape ``(K,)`` each.
    """
    own = [location_and_scale(scores[labels == c]) for c in range(int(labels.max()) + 1)]
    location, scale = zip(*own, strict=True)
    return torch.stack(location), torch.stack(scale)


def counts_of(labels: Tensor) -> Tensor:
    """Count the images of each class.

    Args:
        labels: Their classes, of shape ``(N,)``, integers from 0.

    Returns:
        The numbers, of shape ``(K,)``, at least 1 each.

    Raises:
        ValueError: If there is no image, or a class below the highest label has none.
    """
    counts = torch.bincount(labels)
    if len(counts) == 0 or not counts.all():
        missing = (counts == 0).nonzero().flatten().tolist()
        msg = f"calibration needs at least one image of each class, but has {len(labels)} images and none of "
        msg += f"class {', '.join(map(str, missing))}" if missing else "any class"
        raise ValueError(msg)
    return counts


def prototypes_of(unit: Tensor, labels: Tensor) -> Tensor:
    """Find the mean direction of the embeddings of each class.

    Args:
        unit: L2-normalised embeddings, of shape ``(N, D)``.
        labels: Their classes, of shape ``(N,)``, integers from 0 to K - 1, each at least once.

    Returns:
        L2-normalised means, of shape ``(K, D)``.
    """
    return F.normalize(torch.stack([unit[labels == c].mean(0) for c in range(int(labels.max()) + 1)]), dim=1)


def novelty_threshold_of(unit: Tensor, prototypes: Tensor) -> Tensor:
    """Find the cosine distance that hardly any image has to the prototype of its class.

    Args:
        unit: L2-normalised embeddings, of shape ``(N, D)``.
        prototypes: The prototype of the class of each, of shape ``(N, D)``.

    Returns:
        The distance, a scalar greater than 0.
    """
    # Distances are positive and skewed, so their logarithms are what a location and a scale describe.
    distances = 1 - (unit * prototypes).sum(1)
    median, spread = location_and_scale(distances.clamp(min=_MIN_NOVELTY_DISTANCE**2).log())
    return (median + _NOVELTY_SIGMAS * spread).exp().clamp(min=_MIN_NOVELTY_DISTANCE)
