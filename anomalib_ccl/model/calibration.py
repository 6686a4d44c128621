"""Class prototypes, and scores that one threshold fits, whatever the product."""

from typing import Any

import torch
from anomalib.models.components.base import DynamicBufferMixin
from torch import Tensor
from torch.nn import functional as F

from anomalib_ccl.errors import InputError
from anomalib_ccl.model.limits import RATES, added_quantiles, check_rate, limits_at, tail_quantiles
from anomalib_ccl.model.precision import without_autocast
from anomalib_ccl.model.prototypes import counts_of, novelty_thresholds_of, prototypes_of


class ClassCalibration(DynamicBufferMixin):
    r"""Recognise the class of an image by its embedding, and make scores of all classes comparable.

    A class c has a limit :math:`l_c` that a new normal image of it exceeds with the false-alarm rate (see
    :mod:`anomalib_ccl.model.limits`). Map and score of an image are divided by the limit of its class, that of the
    nearest prototype:

    .. math:: \text{calibrated} = \text{raw} / l_c

    So 1 is the threshold of every class, and within a class the order of the images does not change. An image that is
    far from every prototype is an unknown product, and has the limit of all images together. Before :meth:`fit`, scores
    pass unchanged.

    Args:
        false_alarm_rate: Probability with which a new normal image exceeds the limit of its class, in (0, 0.5].

    Attributes:
        prototypes: Mean embedding of each class, L2-normalised, of shape ``(K, D)``; K = 0 before :meth:`fit`.
        quantiles: Limits at :data:`~anomalib_ccl.model.limits.RATES`, of each class and, last, of unknown products, of
            shape ``(K + 1, R)``. They set the limits of any other rate.
        limits: Limits at the false-alarm rate, of shape ``(K + 1,)``.
        levels: Typical scores of normal images of each class and, last, of all, of shape ``(K + 1, 2)``: that of the
            reconstruction and that of the memory, by which the maps of both are divided before they are added.
        novelty_threshold: Cosine distance to its prototype above which a product is unknown, of shape ``(K,)``.

    Raises:
        InputError: If the false-alarm rate is out of its range.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 2.0], [0.1, 2.0]])
        >>> calibration = ClassCalibration(false_alarm_rate=0.1)
        >>> calibration.fit(embeddings, scores=torch.tensor([1.0, 1.2, 5.0, 6.0]), labels=torch.tensor([0, 0, 1, 1]))
        >>> index = calibration.recognise(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        >>> index
        tensor([0, 2])
        >>> anomaly_map, score = calibration(torch.ones(2, 1, 8, 8), torch.ones(2, 1), index)
        >>> score.shape
        torch.Size([2, 1])
    """

    prototypes: Tensor
    quantiles: Tensor
    limits: Tensor
    levels: Tensor
    novelty_threshold: Tensor

    def __init__(self, false_alarm_rate: float = 0.01) -> None:
        super().__init__()
        check_rate(false_alarm_rate)
        self._false_alarm_rate = false_alarm_rate
        for name, value in _not_calibrated().items():
            self.register_buffer(name, value)

    @property
    def false_alarm_rate(self) -> float:
        """The rate of the limits; setting it sets the limits of a calibrated model anew."""
        return self._false_alarm_rate

    @false_alarm_rate.setter
    def false_alarm_rate(self, rate: float) -> None:
        check_rate(rate)
        self._false_alarm_rate = rate
        self.limits = limits_at(self.quantiles, rate)

    @property
    def is_calibrated(self) -> bool:
        """Whether :meth:`fit` was called, or a calibrated state loaded."""
        return len(self.limits) > 0

    def reset(self) -> None:
        """Be as before :meth:`fit`."""
        for name, value in _not_calibrated().items():
            setattr(self, name, value.to(self.prototypes.device))

    def fit(self, embeddings: Tensor, scores: Tensor, labels: Tensor, levels: Tensor | None = None) -> None:
        """Compute prototypes and limits from normal images, replacing earlier ones.

        Args:
            embeddings: Embeddings of N normal images, of shape ``(N, D)``.
            scores: Their raw scores, of shape ``(N,)``, at least 0, which the images should have no part in: a model
                scores images that it was trained on lower than new ones.
            labels: Their classes, of shape ``(N,)``, integers from 0 to K - 1.
            levels: As the attribute, where maps are fused.

        Raises:
            InputError: If there is no image, or a class between 0 and the highest label has none.
        """
        classes = len(counts_of(labels))
        # Lightning validates in inference mode, and its tensors could neither be loaded into nor trained on later.
        with torch.inference_mode(mode=False), torch.no_grad():
            unit = F.normalize(embeddings.float(), dim=1)
            self.prototypes = prototypes_of(unit, labels)
            self.novelty_threshold = novelty_thresholds_of(unit, labels, self.prototypes)
            # Not on the device: Apple's have no double precision.
            self.quantiles = tail_quantiles(scores.float().cpu(), labels.cpu()).to(unit.device)
            self.levels = unit.new_ones(classes + 1, 2) if levels is None else levels.clone()
            self.limits = limits_at(self.quantiles, self.false_alarm_rate)

    def add(self, embeddings: Tensor, scores: Tensor, labels: Tensor, levels: Tensor | None = None) -> None:
        """Add classes behind those known, whose prototypes and limits stay to the bit.

        Unknown products keep the limit of the images of :meth:`fit`. The novelty thresholds of the new classes are by
        their own distances, because nothing has trained the network to keep their images together.

        Args:
            embeddings: Embeddings of N normal images, of shape ``(N, D)``.
            scores: Their raw scores, of shape ``(N,)``, at least 0.
            labels: Their classes, of shape ``(N,)``, integers from 0; class 0 gets index K, and so on.
            levels: Levels of the new classes, where maps are fused; a further row, of all, is left out.

        Raises:
            InputError: If nothing is calibrated, there is no image, or a class below the highest label has none.
        """
        self._check_calibrated()
        new = len(counts_of(labels))
        with torch.inference_mode(mode=False), torch.no_grad():
            unit = F.normalize(embeddings.float(), dim=1)
            prototypes = prototypes_of(unit, labels)
            own = novelty_thresholds_of(unit, labels, prototypes, self.prototypes)
            added = added_quantiles(self.quantiles.cpu(), scores.float().cpu(), labels.cpu()).to(unit.device)
            rows = unit.new_ones(new, 2) if levels is None else levels[:new]
            self.prototypes = torch.cat([self.prototypes, prototypes])
            self.novelty_threshold = torch.cat([self.novelty_threshold, own])
            self.quantiles = torch.cat([self.quantiles[:-1], added, self.quantiles[-1:]])
            self.levels = torch.cat([self.levels[:-1], rows, self.levels[-1:]])
            self.limits = limits_at(self.quantiles, self.false_alarm_rate)

    def remove(self, index: int) -> None:
        """Forget a class; all else stays as it is, the limit of unknown products included.

        Args:
            index: Its index, from 0 to K - 1. Those above it move down by one.

        Raises:
            InputError: If nothing is calibrated, or it is the last class.
        """
        self._check_calibrated()
        if len(self.prototypes) == 1:
            msg = "the last class cannot be removed: a model must know one product; add another one first"
            raise InputError(msg)
        for name in _not_calibrated():
            value = getattr(self, name)
            setattr(self, name, value[torch.arange(len(value), device=value.device) != index])

    def recognise(self, embedding: Tensor) -> Tensor:
        """Find the class of each image.

        Args:
            embedding: Embeddings, of shape ``(B, D)``.

        Returns:
            Class indices of shape ``(B,)``, K for an unknown product.
        """
        with without_autocast(embedding.device):  # distances of 0.01 matter
            similarity, nearest = (F.normalize(embedding.float(), dim=1) @ self.prototypes.T).max(dim=1)
        # K and not -1 for the last limit: not all that runs exported graphs gathers with negative indices.
        return torch.where(
            1 - similarity > self.novelty_threshold.index_select(0, nearest), len(self.prototypes), nearest
        )

    def forward(self, anomaly_map: Tensor, score: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Divide the map and the score of each image by the limit of its class.

        Args:
            anomaly_map: Raw anomaly maps, of shape ``(B, 1, H, W)``, at least 0.
            score: Raw scores, of shape ``(B, 1)``, at least 0.
            index: Class of each image, of shape ``(B,)``; K for an unknown product.

        Returns:
            The maps and scores, in the same shapes; 1 is the limit.
        """
        # Not [index], which exporters wrap, so that a file's limits could not be found in its graph.
        limit = self.limits.index_select(0, index)[:, None]
        return anomaly_map / limit[:, :, None, None], score / limit

    def _check_calibrated(self) -> None:
        if not self.is_calibrated:
            msg = "the model is not calibrated, so no class can be added or removed; train it to its end first"
            raise InputError(msg)

    def _load_from_state_dict(self, *args: Any) -> None:  # noqa: ANN401  # torch's
        """Take a state with any number of classes."""
        super()._load_from_state_dict(*args)
        self.limits = limits_at(self.quantiles, self.false_alarm_rate)  # this model's rate may be another one


def _not_calibrated() -> dict[str, Tensor]:
    return {
        "prototypes": torch.empty(0, 0),
        "quantiles": torch.empty(0, len(RATES)),
        "limits": torch.empty(0),
        "levels": torch.empty(0, 2),
        "novelty_threshold": torch.empty(0),
    }
