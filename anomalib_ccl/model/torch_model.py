"""The CCL network (Fan et al., https://arxiv.org/abs/2412.04769)."""

from pathlib import Path
from typing import Literal, NamedTuple

import torch
from anomalib.data.dataclasses import InferenceBatch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_ccl.model.anomaly_map import anomaly_map
from anomalib_ccl.model.calibration import Calibrated, ClassCalibration
from anomalib_ccl.model.projection import Projection, projection_layer
from anomalib_ccl.model.reconstruction import ReverseDistillation
from anomalib_ccl.model.refined_map import refined_map

AnomalyMap = Literal["paper", "refined"]

_MAPS = {"paper": anomaly_map, "refined": refined_map}


class TrainingOutput(NamedTuple):
    """What the losses of a training step need.

    Attributes:
        features: The teacher's maps of the images, per scale of shape ``(B, C_l, H_l, W_l)``.
        projected: Their projections, in the same shapes, with the step's noise.
        reconstructed: The decoder's maps, in the same shapes.
        embedding: The mean of the embedding map over its positions, of shape ``(B, D)``.
        view_features: The teacher's maps of the second view, or an empty list where none was given.
        view_projected: Their projections, or an empty list.
        view_embedding: As ``embedding``, of the second view, where it was asked for.
    """

    features: list[Tensor]
    projected: list[Tensor]
    reconstructed: list[Tensor]
    embedding: Tensor
    view_features: list[Tensor]
    view_projected: list[Tensor]
    view_embedding: Tensor | None


class Scored(NamedTuple):
    """What the network finds in images, before any calibration.

    Attributes:
        embedding: The mean of the embedding map over its positions, of shape ``(B, D)``.
        anomaly_map: The anomaly map, of shape ``(B, 1, H, W)`` in [0, 2 × scales].
        score: Its maximum, of shape ``(B, 1)``.
    """

    embedding: Tensor
    anomaly_map: Tensor
    score: Tensor


class CCLModel(nn.Module):
    """A reconstruction network whose features are projected before the bottleneck fuses them.

    A frozen teacher gives multi-scale features f, projections make p of them, a bottleneck fuses p into an
    embedding e, and a decoder reconstructs f from e. Where the reconstruction fails, the image is anomalous. Once
    calibrated, the network recognises the class of an image by its embedding and scores it by the limit of that class.

    Args:
        backbone: Name of a convolutional timm model for the teacher.
        pre_trained: Whether the teacher uses timm's pre-trained weights.
        backbone_weights: A ``.safetensors`` or ``.pth`` file with the teacher's weights, used instead of timm's.
        projection: The layers between teacher and bottleneck; see
            :func:`~anomalib_ccl.model.projection.projection_layer`.
        skip: Whether the bottleneck gets the features too, at unit scale, added to their projections, so that no detail
            is lost in the projections' C/4 channels; the losses shape the projections alone.
        noise_probability: Probability, per training step, of noise on the projected features, in [0, 1].
        false_alarm_rate: Share of normal images whose calibrated score exceeds 1, in (0, 0.5].
        anomaly_map: How distances become a map: ``"paper"`` is :func:`~anomalib_ccl.model.anomaly_map.anomaly_map`,
            ``"refined"`` is :func:`~anomalib_ccl.model.refined_map.refined_map`.
        subtract_usual: Whether calibration learns what is usual in the map of each class, which is then taken off it.

    Raises:
        ValueError: If an argument is out of its range.
        FileNotFoundError: If the file of weights does not exist.
        OSError: If the weights cannot be downloaded.

    Example:
        >>> model = CCLModel("resnet18", pre_trained=False).eval()
        >>> prediction = model(torch.zeros(2, 3, 64, 64))
        >>> prediction.anomaly_map.shape, prediction.pred_score.shape
        (torch.Size([2, 1, 64, 64]), torch.Size([2, 1]))
    """

    def __init__(
        self,
        backbone: str = "wide_resnet50_2",
        pre_trained: bool = True,
        backbone_weights: str | Path | None = None,
        projection: Projection = "standard",
        skip: bool = False,
        noise_probability: float = 0.309,
        anomaly_map: AnomalyMap = "paper",
        subtract_usual: bool = False,
        false_alarm_rate: float = 0.05,
    ) -> None:
        super().__init__()
        if not 0 <= noise_probability <= 1:
            msg = f"noise_probability must lie in [0, 1], got {noise_probability}"
            raise ValueError(msg)
        if anomaly_map not in _MAPS:
            msg = f"unknown anomaly_map {anomaly_map!r}; choose one of {', '.join(_MAPS)}"
            raise ValueError(msg)
        self.noise_probability = noise_probability
        self.skip = skip
        self.anomaly_map = anomaly_map
        self.network = ReverseDistillation(backbone, pre_trained, backbone_weights)
        self.projections = nn.ModuleList(projection_layer(c, projection) for c in self.network.channels)
        self.calibration = ClassCalibration(false_alarm_rate, subtract_usual)
        # The faster order for convolutions, on processors and GPUs: their maps follow their weights.
        self.to(memory_format=torch.channels_last)

    def forward(
        self,
        images: Tensor,
        view: Tensor | None = None,
        features: list[Tensor] | None = None,
        embed_view: bool = False,
    ) -> InferenceBatch | TrainingOutput:
        """Score images in eval mode, or compute what the losses need in training mode.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``, H and W multiples of 32.
            view: Their second view, in the same shape, in training mode.
            features: What the teacher gave for the images, in training mode; without it, it is run on them.
            embed_view: Whether the second view is embedded too, for a loss that compares embeddings of both. It
                leaves no trace in the running statistics, and its features are not reconstructed.

        Returns:
            In eval mode the calibrated anomaly map, of shape ``(B, 1, H, W)``, and score, of shape ``(B, 1)``. In
            training mode a :class:`TrainingOutput`.

        Raises:
            ValueError: If the height or width of the images is not a multiple of the network's stride.
        """
        if not self.training:
            calibrated = self.classify(images)
            return InferenceBatch(anomaly_map=calibrated.anomaly_map, pred_score=calibrated.score)
        self._check_size(images)
        all_features = self._encode(images, view, features)
        features, view_features = _views(all_features, len(images))
        projected, view_projected = _views(self._project(all_features), len(images))
        projected = self._add_noise(projected)
        embedding_map = self.network.embed(self._inputs(features, projected))
        view_map = self.network.embed_view(self._inputs(view_features, view_projected)) if embed_view else None
        return TrainingOutput(
            features=features,
            projected=projected,
            reconstructed=self.network.decode(embedding_map),
            embedding=embedding_map.mean(dim=(-2, -1)),
            view_features=view_features,
            view_projected=view_projected,
            view_embedding=None if view_map is None else view_map.mean(dim=(-2, -1)),
        )

    def classify(self, images: Tensor) -> Calibrated:
        """Score images, in eval mode, and tell the class of each.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``, H and W multiples of 32.

        Returns:
            Calibrated maps and scores, and class indices, K, the number of classes, for an unknown product. Before
            calibration K is 0, and the map and the score are the raw ones.

        Raises:
            ValueError: If the height or width of the images is not a multiple of the network's stride.
        """
        return self.calibration(*self.score(images))

    def score(self, images: Tensor) -> Scored:
        """Score images, in eval mode, by how badly their features are reconstructed, less what is usual of their class.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``, H and W multiples of 32.

        Returns:
            Embeddings, raw maps and raw scores.

        Raises:
            ValueError: If the height or width of the images is not a multiple of the network's stride.
        """
        self._check_size(images)
        features = self.network.encode(images)
        embedding_map = self.network.embed(self._inputs(features, self._project(features)))
        embedding = embedding_map.mean(dim=(-2, -1))
        size = (images.shape[-2], images.shape[-1])
        raw_map = _MAPS[self.anomaly_map](features, self.network.decode(embedding_map), size)
        raw_map = self.calibration.unusual(embedding, raw_map)
        return Scored(embedding, raw_map, raw_map.amax(dim=(-2, -1)))

    def _check_size(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        if height % self.network.stride or width % self.network.stride:
            msg = (
                f"images of {height} × {width} pixels do not fit the network: height and width must be multiples of "
                f"{self.network.stride}. Let the pre-processor resize them."
            )
            raise ValueError(msg)

    def _encode(self, images: Tensor, view: Tensor | None, features: list[Tensor] | None) -> list[Tensor]:
        if features is None:
            # Both views in one pass: a processor does a larger batch faster.
            return self.network.encode(images if view is None else torch.cat([images, view]))
        if view is None:
            return features
        return [torch.cat(maps) for maps in zip(features, self.network.encode(view), strict=True)]

    def _project(self, features: list[Tensor]) -> list[Tensor]:
        return [projection(f) for projection, f in zip(self.projections, features, strict=True)]

    def _inputs(self, features: list[Tensor], projected: list[Tensor]) -> list[Tensor]:
        """What the bottleneck gets."""
        if not self.skip:
            return projected
        # One mean and one deviation for each image and scale: the backbones' own scales, 6 to 7 in
        # tf_efficientnet_lite0, would drown the projections and the noise, of about 1.
        return [F.layer_norm(f, f.shape[1:]) + p for f, p in zip(features, projected, strict=True)]

    def _add_noise(self, projected: list[Tensor]) -> list[Tensor]:
        """Now and then disturb half of the positions with unit Gaussian noise, so that the bottleneck denoises."""
        if torch.rand(()) >= self.noise_probability:
            return projected
        # In this order whatever that of the map, so that a seed stands for the same noise.
        layout = torch.contiguous_format
        return [
            p + torch.randn_like(p, memory_format=layout) * torch.bernoulli(torch.full_like(p[:, :1], 0.5))
            for p in projected
        ]


def _views(maps: list[Tensor], batch: int) -> tuple[list[Tensor], list[Tensor]]:
    """Separate the maps of the images from those of their second views, if there are any."""
    parts = [m.split(batch) for m in maps]
    return [part[0] for part in parts], [part[1] for part in parts if len(part) > 1]
