"""Class prototypes, and scores that one threshold fits, whatever the product."""

from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The share of a normal distribution below its mean plus one standard deviation.
_ONE_SIGMA = NormalDist().cdf(1)
# A class of this many images gives its own spread half of the weight. With 1, 5 and 20 images of a class of realad,
# its limit was off by 11, 8 and 5.5 % (27, 11 and 6 % without shrinkage); 2 or 10 are as good.
_SHRINKAGE = 5
# Measured with the five products of realad known: at 3, 4 and 5, of images of the sample data 96, 83 and 68 % are
# called unknown; of good images of the known products 1.6, 0 and 0 %, of their defective images 11, 4 and 0 %.
_NOVELTY_SIGMAS = 4.0
# Identical training images all lie on their prototype; an angle of 8° is no other product even then.
_MIN_NOVELTY_DISTANCE = 0.01
# Pixels that share what is usual there; 4 KiB for each class at 256 pixels. Full maps were no better.
_BLOCK = 8
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
        novelty_threshold: Cosine distance to the nearest prototype above which a product is unknown, a scalar.
        usual: What is usual in the map of each class, of shape ``(K, 1, H / 8, W / 8)``, at least 0; K = 0 where that
            was not learnt.

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
        if not 0 < false_alarm_rate <= 0.5:
            msg = f"false_alarm_rate must lie in (0, 0.5], got {false_alarm_rate}"
            raise ValueError(msg)
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
        counts = torch.bincount(labels)
        if len(counts) == 0 or not counts.all():
            missing = (counts == 0).nonzero().flatten().tolist()
            msg = f"calibration needs at least one image of each class, but has {len(labels)} images and none of "
            msg += f"class {', '.join(map(str, missing))}" if missing else "any class"
            raise ValueError(msg)

        # Lightning validates in inference mode, and its tensors could neither be loaded into nor trained on later.
        with torch.inference_mode(mode=False), torch.no_grad():
            unit = F.normalize(embeddings.float(), dim=1)
            classes = range(len(counts))
            self.prototypes = F.normalize(torch.stack([unit[labels == c].mean(0) for c in classes]), dim=1)

            scores = scores.float()
            self.global_location, self.global_scale = _location_and_scale(scores)
            own = [_location_and_scale(scores[labels == c]) for c in classes]
            location, scale = (torch.stack(statistic) for statistic in zip(*own, strict=True))
            _, within = _location_and_scale(scores - location[labels])
            self.scale = torch.lerp(within, scale, counts / (counts + _SHRINKAGE))
            # How far a class may be drawn depends on how much classes differ: the empirical Bayes weight.
            between = counts * (location[labels] - self.global_location).square().mean()
            weight = between / (between + within.square()).clamp(min=_TINY)
            self.location = torch.lerp(self.global_location, location, weight)

            # Distances are positive and skewed, so their logarithms are what a location and a scale describe.
            distances = 1 - (unit * self.prototypes[labels]).sum(1)
            median, spread = _location_and_scale(distances.clamp(min=_MIN_NOVELTY_DISTANCE**2).log())
            self.novelty_threshold = (median + _NOVELTY_SIGMAS * spread).exp().clamp(min=_MIN_NOVELTY_DISTANCE)

    @staticmethod
    def in_blocks(anomaly_map: Tensor) -> Tensor:
        """Average maps of shape ``(B, 1, H, W)`` over blocks of 8 × 8 pixels."""
        return F.avg_pool2d(anomaly_map, _BLOCK)

    def learn_usual(self, maps: Tensor) -> None:
        """Learn what is usual of each class, and so how high a map is everywhere above the class's lowest place.

        Maps of other images are then less than what is usual there; scores change, and :meth:`fit` is due once more.

        Args:
            maps: The mean of the maps of each class's normal images in blocks of 8 × 8 pixels, as :meth:`in_blocks`
                gives them, of shape ``(K, 1, H / 8, W / 8)``.
        """
        with torch.inference_mode(mode=False):
            self.usual = maps.float() - maps.float().amin(dim=(-2, -1), keepdim=True)

    def unusual(self, embedding: Tensor, anomaly_map: Tensor) -> Tensor:
        """Take what is usual of the class of each image off its map; of an unknown product, the mean of all classes.

        Args:
            embedding: Embeddings, of shape ``(B, D)``.
            anomaly_map: Raw anomaly maps, of shape ``(B, 1, H, W)``, at least 0.

        Returns:
            What is left, at least 0; all of it where :meth:`learn_usual` was not called.
        """
        if len(self.usual) == 0:
            return anomaly_map
        usual = torch.cat([self.usual, self.usual.mean(dim=0, keepdim=True)])[self.recognise(embedding)]
        size = (anomaly_map.shape[-2], anomaly_map.shape[-1])
        return (anomaly_map - F.interpolate(usual, size, mode="bilinear")).clamp(min=0)

    def recognise(self, embedding: Tensor) -> Tensor:
        """Find the class of each image.

        Args:
            embedding: Embeddings, of shape ``(B, D)``.

        Returns:
            Class indices of shape ``(B,)``, K for an unknown product.
        """
        similarity, nearest = (F.normalize(embedding.float(), dim=1) @ self.prototypes.T).max(dim=1)
        # K and not -1 for the last limit: not all that runs exported graphs gathers with negative indices.
        return torch.where(1 - similarity > self.novelty_threshold, len(self.prototypes), nearest)

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
        limit = self._limits()[index][:, None]
        return Calibrated(anomaly_map / limit[:, :, None, None], score / limit, index)

    def _limits(self) -> Tensor:
        """The limit of each class and, last, that of all images."""
        location = torch.cat([self.location, self.global_location[None]])
        scale = torch.cat([self.scale, self.global_scale[None]])
        z = NormalDist().inv_cdf(1 - self.false_alarm_rate)
        return (location + z * scale).clamp(min=_TINY)

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


def _location_and_scale(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the median and half the width of the middle 68 % of values of shape ``(N,)``."""
    low, median, high = torch.quantile(values, values.new_tensor([1 - _ONE_SIGMA, 0.5, _ONE_SIGMA]))
    return median, (high - low) / 2
