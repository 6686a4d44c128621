"""Class prototypes, and scores that one threshold fits, whatever the product."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_ccl.model.statistics import (
    check_rate,
    counts_of,
    limits_at,
    location_and_scale,
    novelty_threshold_of,
    of_each_class,
    prototypes_of,
)
from anomalib_ccl.model.usual import in_blocks, to_take_off, without_usual

# A class of this many images gives its own spread half of the weight. With 1, 5 and 20 images of a class of realad,
# its limit was off by 11, 8 and 5.5 % (27, 11 and 6 % without shrinkage); 2 or 10 are as good.
_SHRINKAGE = 5
_TINY = 1e-6


class Calibrated(NamedTuple):
    """What :class:`ClassCalibration` makes of a batch.

    Attributes:
        anomaly_map: The calibrated map, of shape ``(B, 1, H, W)``, at least 0.
        score: The calibrated score, of shape ``(B, 1)``, at least 0; 1 is the limit of the image's class.
        class_index: The class of each image, of shape ``(B,)``, integers; K, the number of classes, means an unknown
            product.
    """

    anomaly_map: Tensor
    score: Tensor
    class_index: Tensor


class ClassCalibration(nn.Module):
    r"""Recognise the class of an image by its embedding, and make scores of all classes comparable.

    Each class c has its own level and spread of the image score: the location :math:`m_c`, the median over its
    normal images, and the scale :math:`s_c`, half the range that holds the middle 68 % of them, a standard deviation
    that outliers do not move. They give a limit that a normal image exceeds with the false-alarm rate r, and map
    and score of an image are divided by the limit of its class, that of the nearest prototype:

    .. math:: \text{calibrated} = \frac{\text{raw}}{m_c + z_r s_c}, \quad z_r = \Phi^{-1}(1 - r).

    So 1 is the limit of every class, and within a class the order of the images does not change. Dividing by the
    limit, instead of subtracting :math:`m_c` and dividing by :math:`s_c`, keeps a class with hardly any scatter from
    having its scores blown up, and ranks defects of different classes better (pooled image AUROC on realad: 79.2
    against 77.4, and 78.6 without calibration).

    With few images, the location of a class shrinks towards that of all images, and its scale towards the spread
    within all classes. An image that is far from every prototype is an unknown
    product and scored with the statistics of all images. Before :meth:`fit`, scores pass unchanged and every class
    is unknown.

    Where an edge or a hole of a product lies in each image, its map is high in each image. What is usual of a class
    can be learnt too, and be taken off a map before it is scored; see :meth:`learn_usual`.

    Args:
        false_alarm_rate: Share of normal images of each class whose calibrated score exceeds 1, in (0, 0.5]. It is an
            estimate from the calibration images, and can be changed without another :meth:`fit`.
        subtract_usual: Whether those who calibrate are to call :meth:`learn_usual`.

    Attributes:
        prototypes: Mean embedding of each class, L2-normalised, of shape ``(K, D)``; K = 0 before :meth:`fit`.
        location: Median score of each class, of shape ``(K,)``.
        scale: Spread of the score of each class, of shape ``(K,)``.
        global_location: Median score of all images, a scalar.
        global_scale: Spread of the score of all images, a scalar.
        novelty_threshold: Cosine distance to the nearest prototype above which a product is unknown, a scalar; of shape
            ``(K,)`` once classes were added.
        usual: What is taken off the map of each class, seven tenths of what is usual in it, of shape
            ``(K, 1, H / 8, W / 8)``, at least 0; K = 0 where that was not learnt.

    Raises:
        ValueError: If the false-alarm rate is out of its range.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 2.0], [0.1, 2.0]])
        >>> calibration = ClassCalibration()
        >>> calibration.fit(embeddings, scores=torch.tensor([1.0, 1.2, 5.0, 6.0]), labels=torch.tensor([0, 0, 1, 1]))
        >>> calibrated = calibration(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.ones(2, 1, 8, 8), torch.ones(2, 1))
        >>> calibrated.class_index
        tensor([0, 2])
        >>> calibrated.anomaly_map.shape, calibrated.score.shape
        (torch.Size([2, 1, 8, 8]), torch.Size([2, 1]))
    """

    prototypes: Tensor
    location: Tensor
    scale: Tensor
    global_location: Tensor
    global_scale: Tensor
    novelty_threshold: Tensor
    usual: Tensor

    def __init__(self, false_alarm_rate: float = 0.05, subtract_usual: bool = False) -> None:
        super().__init__()
        check_rate(false_alarm_rate)
        self.false_alarm_rate = false_alarm_rate
        self.subtract_usual = subtract_usual
        for name, value in _not_calibrated().items():
            self.register_buffer(name, value)

    @property
    def is_calibrated(self) -> bool:
        """Whether :meth:`fit` was called, or a calibrated state loaded."""
        return len(self.prototypes) > 0

    def reset(self) -> None:
        """Be as before :meth:`fit`."""
        for name, value in _not_calibrated().items():
            setattr(self, name, value.to(self.prototypes.device))

    def fit(self, embeddings: Tensor, scores: Tensor, labels: Tensor) -> None:
        """Compute prototypes and statistics from normal images, replacing earlier ones.

        Embeddings and raw scores are those of the model in eval mode. Take them from slightly changed images (see
        :func:`~anomalib_ccl.training.views.retaken`): on the very images that it was trained on, the model scores lower
        than on new ones, and by how much differs between classes.

        Args:
            embeddings: Embeddings of N normal images, of shape ``(N, D)``.
            scores: Their raw scores, of shape ``(N,)``, at least 0.
            labels: Their classes, of shape ``(N,)``, integers from 0 to K - 1.

        Raises:
            ValueError: If there is no image, or a class between 0 and the highest label has none.
        """
        counts = counts_of(labels)
        # Lightning validates in inference mode, and its tensors could neither be loaded into nor trained on later.
        with torch.inference_mode(mode=False), torch.no_grad():
            unit = F.normalize(embeddings.float(), dim=1)
            self.prototypes = prototypes_of(unit, labels)
            scores = scores.float()
            self.global_location, self.global_scale = location_and_scale(scores)
            location, scale = of_each_class(scores, labels)
            _, within = location_and_scale(scores - location[labels])
            self.scale = torch.lerp(within, scale, counts / (counts + _SHRINKAGE))
            # How far a class may be drawn depends on how much classes differ: the empirical Bayes weight.
            between = counts * (location[labels] - self.global_location).square().mean()
            weight = between / (between + within.square()).clamp(min=_TINY)
            self.location = torch.lerp(self.global_location, location, weight)

            self.novelty_threshold = novelty_threshold_of(unit, self.prototypes[labels])

    def add(self, embeddings: Tensor, scores: Tensor, labels: Tensor, maps: Tensor | None = None) -> None:
        """Add classes behind those known, whose prototypes, limits and novelty threshold stay to the bit.

        What :meth:`fit` knows of all images, a calibrated state does not hold. In its place:

        - The statistics of all images, for unknown products, remain those of the images of :meth:`fit`: a new class
          changes no score but those of images that its prototype is the nearest to.
        - The spread within all classes, towards which that of a class of few images shrinks, is the median of the
          spreads of the known classes; how much classes differ is seen from the known and the new ones, all alike.
        - The new classes have a novelty threshold of their own, by their own distances, because nothing has trained
          the network to keep their images together; it is never below that of the known ones.

        Args:
            embeddings: Embeddings of N normal images, of shape ``(N, D)``.
            scores: Their raw scores, of shape ``(N,)``, at least 0.
            labels: Their classes, of shape ``(N,)``, integers from 0; class 0 gets index K, and so on.
            maps: The mean map of each new class, as :meth:`learn_usual` takes them, where that was called.

        Raises:
            ValueError: If nothing is calibrated, there is no image, or a class below the highest label has none.
        """
        known = self._known()
        counts = counts_of(labels)
        with torch.inference_mode(mode=False), torch.no_grad():
            unit, scores = F.normalize(embeddings.float(), dim=1), scores.float()
            prototypes = prototypes_of(unit, labels)
            location, scale = of_each_class(scores, labels)
            within = self.scale.median()
            scale = torch.lerp(within, scale, counts / (counts + _SHRINKAGE))
            differences = torch.cat([self.location, location]) - self.global_location
            between = counts * differences.square().mean()
            weight = between / (between + within.square()).clamp(min=_TINY)

            threshold = self.novelty_threshold.expand(known)
            own = novelty_threshold_of(unit, prototypes[labels]).maximum(threshold.max())
            self.novelty_threshold = torch.cat([threshold, own.expand(len(counts))])
            self.prototypes = torch.cat([self.prototypes, prototypes])
            self.location = torch.cat([self.location, torch.lerp(self.global_location, location, weight)])
            self.scale = torch.cat([self.scale, scale])
            if maps is not None:
                self.usual = torch.cat([self.usual, to_take_off(maps)])

    def remove(self, index: int) -> None:
        """Forget a class; all else stays as it is, the statistics of all images included.

        Args:
            index: Its index, from 0 to K - 1. Those above it move down by one.

        Raises:
            ValueError: If nothing is calibrated, or it is the last class.
        """
        if self._known() == 1:
            msg = "the last class cannot be removed: a model must know one product; add another one first"
            raise ValueError(msg)
        kept = torch.arange(len(self.prototypes), device=self.prototypes.device) != index
        self.prototypes, self.location, self.scale = self.prototypes[kept], self.location[kept], self.scale[kept]
        if self.novelty_threshold.ndim:
            self.novelty_threshold = self.novelty_threshold[kept]
        if len(self.usual):
            self.usual = self.usual[kept]

    def _known(self) -> int:
        if not self.is_calibrated:
            msg = "nothing is calibrated, so no class can be added or removed; fit the calibration first"
            raise ValueError(msg)
        return len(self.prototypes)

    in_blocks = staticmethod(in_blocks)

    def learn_usual(self, maps: Tensor) -> None:
        """Learn what is usual of each class, from the mean of the maps of its normal images.

        Maps of other images are then less what is usual there; scores change, and :meth:`fit` is due once more.

        Args:
            maps: The mean maps, as :meth:`in_blocks` gives them, of shape ``(K, 1, H / 8, W / 8)``.
        """
        with torch.inference_mode(mode=False):
            self.usual = to_take_off(maps)

    def unusual(self, embedding: Tensor, anomaly_map: Tensor) -> Tensor:
        """Take what is usual of its class off the map of each image, ``(B, 1, H, W)``, where that was learnt."""
        if len(self.usual) == 0:
            return anomaly_map
        return without_usual(anomaly_map, self.usual, self.recognise(embedding))

    def recognise(self, embedding: Tensor) -> Tensor:
        """Find the class of each image.

        Args:
            embedding: Embeddings, of shape ``(B, D)``.

        Returns:
            Class indices of shape ``(B,)``, K for an unknown product.
        """
        similarity, nearest = (F.normalize(embedding.float(), dim=1) @ self.prototypes.T).max(dim=1)
        # K and not -1 for the last limit: not all that runs exported graphs gathers with negative indices.
        threshold = self.novelty_threshold.expand(len(self.prototypes)).index_select(0, nearest)
        return torch.where(1 - similarity > threshold, len(self.prototypes), nearest)

    def forward(self, embedding: Tensor, anomaly_map: Tensor, score: Tensor) -> Calibrated:
        """Find the class of each image and divide its map and score by the limit of that class.

        Args:
            embedding: Embeddings, of shape ``(B, D)``.
            anomaly_map: Raw anomaly maps, of shape ``(B, 1, H, W)``, at least 0.
            score: Raw scores, of shape ``(B, 1)``, at least 0.

        Returns:
            Calibrated maps and scores, and the class indices.
        """
        if not self.is_calibrated:
            return Calibrated(anomaly_map, score, torch.zeros_like(score[:, 0], dtype=torch.long))
        index = self.recognise(embedding)
        # Not [index], which exporters wrap, so that a file's table of limits could not be found in it.
        limit = self.limits().index_select(0, index)[:, None]
        return Calibrated(anomaly_map / limit[:, :, None, None], score / limit, index)

    def limits(self) -> Tensor:
        """Give the limit of each class and, last, that of unknown products, of shape ``(K + 1,)``."""
        return limits_at(*self.statistics(), self.false_alarm_rate)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Give the location and the scale of each class and, last, those of all images, of shape ``(K + 1,)`` each."""
        return torch.cat([self.location, self.global_location[None]]), torch.cat([self.scale, self.global_scale[None]])

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        """Take a state with any number of classes, and what it was saved too early to have as not learnt."""
        if not any(key.startswith(prefix) for key in state_dict):
            state_dict.update({prefix + name: value for name, value in _not_calibrated().items()})
        state_dict.setdefault(f"{prefix}usual", _not_calibrated()["usual"])
        # Not anomalib's DynamicBufferMixin, which does the same: importing anomalib.models runs the plug-in's hook,
        # which needs this very module.
        for name, buffer in self.named_buffers():
            if (saved := state_dict.get(prefix + name)) is not None:
                setattr(self, name, buffer.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _not_calibrated() -> dict[str, Tensor]:
    return {
        "prototypes": torch.empty(0, 0),
        "location": torch.empty(0),
        "scale": torch.empty(0),
        "global_location": torch.tensor(0.0),
        "global_scale": torch.tensor(0.0),
        "novelty_threshold": torch.tensor(0.0),
        "usual": torch.empty(0, 1, 0, 0),
    }
