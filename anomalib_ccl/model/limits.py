"""Limits that a new normal image exceeds with a chosen probability, from few scores of each class.

Scores are maxima of maps, and maxima are skewed. So each class gets a row of limits, one for each rate in
:data:`RATES`, without an assumption about the distribution where its images suffice: a new score of the same class
exceeds the k-th largest of n with probability k / (n + 1). Beyond that, the row continues with an exponential tail
fitted to the exceedances over a threshold (peaks over threshold), widened for the uncertainty of the fit, so that
exponential exceedances keep exactly the expected rate. Classes of fewer than 42 images complete their exceedances with
pseudo exceedances of a typical size, which makes their limits vary less from sample to sample.
``docs/products.md`` has a table of what it gives for five distributions, and ``examples/limit_estimator.py`` makes
it.
"""

import math

import torch
from torch import Tensor

from anomalib_ccl.errors import InputError

#: Rates of the limits in a row: 0.5, then 0.42 to 0.0001 evenly in log-rate.
RATES: tuple[float, ...] = (0.5, *(10.0 ** (-step / 8) for step in range(3, 33)))
# A class with fewer exceedances is completed with pseudo exceedances.
_MIN_EXCEEDANCES = 5
# Their size, in scales; about 0.45 fits normal tails and 1.1 those of Student's t(3).
_EXCESS_PER_SCALE = 0.8
# Degrees of freedom that the scale of all classes is worth.
_SHRINKAGE = 5
_MIN_LIMIT = 1e-6


def check_rate(false_alarm_rate: float) -> None:
    """Refuse what is no false-alarm rate."""
    if not isinstance(false_alarm_rate, int | float) or not 0 < false_alarm_rate <= 0.5:
        msg = f"false_alarm_rate must lie in (0, 0.5], got {false_alarm_rate!r}; 0.01 is one false alarm in 100 images"
        raise InputError(msg)


def tail_quantiles(scores: Tensor, labels: Tensor) -> Tensor:
    """Compute the limits of every class, and of all images together.

    Args:
        scores: Scores of normal images, shape ``(N,)``.
        labels: Class of each image, from 0 to K - 1, shape ``(N,)``. Each
            class must have at least one image.

    Returns:
        Limits at ``RATES``, shape ``(K + 1, R)``. The last row treats all
            images as one class and is meant for products of unknown class.
    """
    classes = _split(scores, labels)
    everything = scores.sort(descending=True).values
    pooled = _scale(everything)
    if len(scores) > len(classes):
        weighted = torch.stack([(len(own) - 1) * _scale(own) for own in classes])
        pooled = weighted.sum() / (len(scores) - len(classes))
    rows = [_row(own, pooled) for own in classes]
    return torch.stack([*rows, _row(everything, _scale(everything))])


def added_quantiles(table: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    """Compute the limits of new classes, leaving those of the known ones as they are.

    Args:
        table: Limits of the known classes and of all images, shape
            ``(K + 1, R)``. Only the pooled scale of the classes is taken from it.
        scores: Scores of normal images of the new classes, shape ``(N,)``.
        labels: New class of each image, counted from 0, shape ``(N,)``.

    Returns:
        Limits of the new classes at ``RATES``, shape ``(new, R)``.
    """
    known = table[:-1]
    pooled = (limits_at(known, 0.16) - limits_at(known, 0.5)).mean()
    return torch.stack([_row(own, pooled) for own in _split(scores, labels)])


def limits_at(table: Tensor, false_alarm_rate: float) -> Tensor:
    """Look up the limits for one rate, linear in log-rate between the stored ones.

    Below the lowest stored rate, the last segment is continued.

    Args:
        table: Limits at ``RATES``, shape ``(K + 1, R)``.
        false_alarm_rate: Probability with which the score of a new normal
            image exceeds the limit, in (0, 0.5].

    Returns:
        Limits, shape ``(K + 1,)``, greater than 0.

    Raises:
        InputError: If the rate is out of its range, (0, 0.5].

    Example:
        >>> table = tail_quantiles(torch.arange(1.0, 100.0), torch.zeros(99, dtype=torch.long))
        >>> limits_at(table, 0.1)  # 10 of 100 scores, the new one among them, would be as high
        tensor([90., 90.])
    """
    check_rate(false_alarm_rate)
    right = sum(rate > false_alarm_rate for rate in RATES)
    right = min(max(right, 1), len(RATES) - 1)
    start, stop = RATES[right - 1], RATES[right]
    weight = math.log(start / false_alarm_rate) / math.log(start / stop)
    return torch.lerp(table[:, right - 1], table[:, right], weight).clamp(_MIN_LIMIT)


def _split(scores: Tensor, labels: Tensor) -> list[Tensor]:
    """Scores of each class, largest first."""
    count = int(labels.max()) + 1
    return [scores[labels == c].sort(descending=True).values for c in range(count)]


def _quantiles(ordered: Tensor, rates: Tensor) -> Tensor:
    """Interpolate order statistics of scores ``(..., n)``, largest first, linear in log-rate, at rates ``(R,)``."""
    n = ordered.shape[-1]
    position = (rates * (n + 1)).clamp(1, n)
    k = position.floor()
    weight = ((position / k).log() / ((k + 1) / k).log()).to(ordered.dtype)
    left, right = k.long() - 1, k.long().clamp(max=n - 1)
    return torch.lerp(ordered[..., left], ordered[..., right], weight)


def _scale(ordered: Tensor) -> Tensor:
    """Distance from the median to the upper 16 % point."""
    rates = torch.tensor([0.16, 0.5], dtype=torch.float64, device=ordered.device)
    upper, median = _quantiles(ordered, rates).unbind(-1)
    return upper - median


def _row(ordered: Tensor, pooled_scale: Tensor) -> Tensor:
    """Limits ``(..., R)`` at all rates, of scores ``(..., n)``, largest first, and a typical scale ``(...,)``."""
    n = ordered.shape[-1]
    rates = torch.tensor(RATES, dtype=torch.float64, device=ordered.device)
    k = min(round(0.7 * math.sqrt(n)), n - 1)
    pseudo = max(_MIN_EXCEEDANCES - k, 0)
    scale = torch.lerp(pooled_scale, _scale(ordered), (n - 1) / (n - 1 + _SHRINKAGE))
    threshold, threshold_rate = ordered[..., k, None], (k + 1) / (n + 1)
    total = (ordered[..., :k] - threshold).sum(-1) + pseudo * _EXCESS_PER_SCALE * scale
    # With m = k + pseudo exponential exceedances that sum up to ``total``, another one
    # is larger than c * total with probability (1 + c) ** -m.
    growth = (threshold_rate / rates) ** (1 / (k + pseudo)) - 1
    tail = threshold + growth.to(ordered.dtype) * total[..., None]
    beyond_sample = rates * (n + 1) < 1
    tail = torch.where(beyond_sample, tail.maximum(ordered[..., :1]), tail)
    within = rates >= threshold_rate
    limits = torch.where(within, _quantiles(ordered, rates), tail)
    return limits.clamp(_MIN_LIMIT).cummax(-1).values
