"""The CCL network (Fan et al., https://arxiv.org/abs/2412.04769)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from anomalib.data.dataclasses import InferenceBatch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_ccl.model.calibration import Calibrated, ClassCalibration
from anomalib_ccl.model.projection import Projection, projection_layer
from anomalib_ccl.model.reconstruction.choice import make_network
from anomalib_ccl.model.reconstruction.shapes import check_encoded, check_reconstructed, check_scored
from anomalib_ccl.model.refined_map import refined_map
from anomalib_ccl.model.tiling import Tiling

AnomalyMap = Literal["paper", "refined"]


class TrainingOutput(NamedTuple):
    """What the losses of a training step need.

    Attributes:
        targets: The maps of the images that are to be reconstructed.
        reconstructed: The decoder's maps, in the same shapes.
        inputs: The maps of the images that are projected, per scale of shape ``(B, C_l, H_l, W_l)``.
        projected: Their projections, in the same shapes, with the step's noise.
        embedding: What the network's embedding says of each image, of shape ``(B, D)``.
        view_inputs: The maps of the second view that are projected, or an empty list where none was given.
        view_projected: Their projections, or an empty list.
        view_embedding: As ``embedding``, of the second view, where it was asked for.
    """

    targets: list[Tensor]
    reconstructed: list[Tensor]
    inputs: list[Tensor]
    projected: list[Tensor]
    embedding: Tensor
    view_inputs: list[Tensor]
    view_projected: list[Tensor]
    view_embedding: Tensor | None


class Scored(NamedTuple):
    """What the network finds in images, before any calibration.

    Attributes:
        embedding: What the network's embedding says of each image, of shape ``(B, D)``.
        anomaly_map: The anomaly map, of shape ``(B, 1, H, W)``, at least 0.
        score: The score that the network makes of it, of shape ``(B, 1)``.
    """

    embedding: Tensor
    anomaly_map: Tensor
    score: Tensor


class CCLModel(nn.Module):
    """A reconstruction network whose features are projected before the bottleneck fuses them.

    In reverse distillation, a frozen teacher gives multi-scale features f, projections make p of them, a bottleneck
    fuses p into an embedding e, and a decoder reconstructs f from e. Where the reconstruction fails, the image is
    anomalous. Once calibrated, the network recognises the class of an image by its embedding and scores it by the limit
    of that class.

    Args:
        backbone: Name of a timm model for the teacher; the reconstruction network's default if not given.
        pre_trained: Whether the teacher uses timm's pre-trained weights.
        backbone_weights: A ``.safetensors`` or ``.pth`` file with the teacher's weights, used instead of timm's.
        projection: The layers between teacher and bottleneck; see
            :func:`~anomalib_ccl.model.projection.projection_layer`.
        skip: Whether the bottleneck gets the features too, at unit scale, added to their projections, so that no detail
            is lost in the projections' C/4 channels; the losses shape the projections alone.
        noise_probability: Probability, per training step, of noise on the projected features, in [0, 1]; the
            reconstruction network's default if not given.
        anomaly_map: How distances become a map: ``"paper"`` is the reconstruction network's own way, ``"refined"`` is
            :func:`~anomalib_ccl.model.refined_map.refined_map`.
        subtract_usual: Whether calibration learns what is usual in the map of each class, which is then taken off it.
        false_alarm_rate: Share of normal images whose calibrated score exceeds 1, in (0, 0.5].
        reconstruction: The reconstruction network: a name in :data:`~anomalib_ccl.model.reconstruction.choice.NETWORKS`
            or the path of a class derived from :class:`~anomalib_ccl.model.reconstruction.ReconstructionNetwork`.
        reconstruction_args: Further arguments of that network, by name.
        tiles: Rows and columns of overlapping tiles that images are cut into, in eval mode; see
            :class:`~anomalib_ccl.model.tiling.Tiling`. In training mode, images are the tiles.

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
        backbone: str | None = None,
        pre_trained: bool = True,
        backbone_weights: str | Path | None = None,
        projection: Projection = "standard",
        skip: bool = False,
        noise_probability: float | None = None,
        anomaly_map: AnomalyMap = "paper",
        subtract_usual: bool = False,
        false_alarm_rate: float = 0.05,
        reconstruction: str = "reverse_distillation",
        reconstruction_args: Mapping[str, Any] | None = None,
        tiles: Sequence[int] = (1, 1),
    ) -> None:
        super().__init__()
        self.tiling = Tiling(tiles)
        self.network = make_network(reconstruction, backbone, pre_trained, backbone_weights, reconstruction_args)
        if noise_probability is None:
            noise_probability = self.network.recipe.noise_probability
        if not 0 <= noise_probability <= 1:
            msg = f"noise_probability must lie in [0, 1], got {noise_probability}"
            raise ValueError(msg)
        if anomaly_map not in get_args(AnomalyMap):
            msg = f"unknown anomaly_map {anomaly_map!r}; choose one of {', '.join(get_args(AnomalyMap))}"
            raise ValueError(msg)
        self.noise_probability = noise_probability
        self.skip = skip
        self.anomaly_map = anomaly_map
        self.projections = nn.ModuleList(projection_layer(c, projection) for c in self.network.channels)
        self.calibration = ClassCalibration(false_alarm_rate, subtract_usual)
        # The faster order for convolutions, on processors and GPUs: their maps follow their weights.
        self.to(memory_format=torch.channels_last)

    def forward(
        self,
        images: Tensor,
        view: Tensor | None = None,
        encoded: tuple[list[Tensor], list[Tensor]] | None = None,
        embed_view: bool = False,
    ) -> InferenceBatch | TrainingOutput:
        """Score images in eval mode, or compute what the losses need in training mode.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``, H and W multiples of the stride.
            view: Their second view, in the same shape, in training mode.
            encoded: What the network's ``encode`` gave for the images, in training mode; without it, it is run on them.
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
        targets, all_inputs = self._encode(images, view, encoded)
        inputs, view_inputs = _views(all_inputs, len(images))
        projected, view_projected = _views(self._project(all_inputs), len(images))
        projected = self._add_noise(projected)
        embedding = self.network.embed(self._beside(inputs, projected))
        view_embedding = self.network.embed_view(self._beside(view_inputs, view_projected)) if embed_view else None
        reconstructed = self.network.decode(embedding)
        check_reconstructed(self.network, targets, reconstructed)
        scales = slice(len(self.projections))
        return TrainingOutput(
            targets=targets,
            reconstructed=reconstructed,
            inputs=inputs[scales],
            projected=projected[scales],
            embedding=self.network.pool(embedding),
            view_inputs=view_inputs[scales],
            view_projected=view_projected[scales],
            view_embedding=None if view_embedding is None else self.network.pool(view_embedding),
        )

    def classify(self, images: Tensor) -> Calibrated:
        """Score images, in eval mode, and tell the class of each.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``, H and W multiples of the stride.

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
            images: Normalised images of shape ``(B, 3, H, W)``, H and W multiples of the stride.

        Returns:
            Embeddings, raw maps and raw scores.

        Raises:
            ValueError: If the height or width of the images is not a multiple of the network's stride.
        """
        pooled, raw_map = self.tiling.find(self._find, images)
        raw_map = self.calibration.unusual(pooled, raw_map)
        return Scored(pooled, raw_map, self.tiling.score(self.network.score, raw_map))

    def features(self, images: Tensor) -> list[Tensor]:
        """Give the maps of images that are projected, as they are before.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``, H and W multiples of the stride.

        Returns:
            Maps of shape ``(B, C_l, H_l, W_l)``, one for each scale; of tiles, their mean at each position.
        """
        return self.tiling.mean(lambda tile: self.network.encode(tile)[1][: len(self.projections)], images)

    def _find(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Give the embeddings, of shape ``(B, D)``, and the maps, of shape ``(B, 1, H, W)``, of images or tiles."""
        self._check_size(images)
        targets, inputs = self.network.encode(images)
        embedding = self.network.embed(self._beside(inputs, self._project(inputs)))
        pooled = self.network.pool(embedding)
        map_of = self.network.anomaly_map if self.anomaly_map == "paper" else refined_map
        raw_map = map_of(targets, self.network.decode(embedding), (images.shape[-2], images.shape[-1]))
        if not torch.compiler.is_compiling():  # an exporter would take the sizes for fixed
            check_scored(self.network, images, pooled, raw_map)
        return pooled, raw_map

    def _check_size(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        if height % self.network.stride or width % self.network.stride:
            what = "images" if self.tiling.count == 1 else "tiles"
            msg = (
                f"{what} of {height} × {width} pixels do not fit the network: height and width must be multiples of "
                f"{self.network.stride}. Let the pre-processor resize them."
            )
            raise ValueError(msg)

    def _encode(
        self, images: Tensor, view: Tensor | None, encoded: tuple[list[Tensor], list[Tensor]] | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Give the targets of the images, and the inputs of the images followed by those of their second views."""
        if encoded is None:
            # Both views in one pass: a processor does a larger batch faster.
            encoded = self.network.encode(images if view is None else torch.cat([images, view]))
            check_encoded(self.network, encoded)
            targets, inputs = encoded
            return [target[: len(images)] for target in targets], inputs
        targets, inputs = encoded
        if view is not None:
            inputs = [torch.cat(pair) for pair in zip(inputs, self.network.encode(view)[1], strict=True)]
        return targets, inputs

    def _project(self, inputs: list[Tensor]) -> list[Tensor]:
        scales = len(self.projections)
        projected = [projection(x) for projection, x in zip(self.projections, inputs, strict=False)]
        return [*projected, *inputs[scales:]]

    def _beside(self, inputs: list[Tensor], projected: list[Tensor]) -> list[Tensor]:
        """Add the inputs to their projections, at unit scale, if that is asked for."""
        if not self.skip:
            return projected
        # One mean and one deviation for each image and scale: the backbones' own scales, 6 to 7 in
        # tf_efficientnet_lite0, would drown the projections and the noise, of about 1.
        scales = len(self.projections)
        pairs = zip(inputs[:scales], projected[:scales], strict=True)
        return [*(F.layer_norm(x, x.shape[1:]) + p for x, p in pairs), *projected[scales:]]

    def _add_noise(self, projected: list[Tensor]) -> list[Tensor]:
        """Now and then disturb half of the positions with unit Gaussian noise, so that the bottleneck denoises."""
        if self.noise_probability == 0 or torch.rand(()) >= self.noise_probability:
            return projected
        # In this order whatever that of the map, so that a seed stands for the same noise.
        layout = torch.contiguous_format
        noisy = [
            p + torch.randn_like(p, memory_format=layout) * torch.bernoulli(torch.full_like(p[:, :1], 0.5))
            for p in projected[: len(self.projections)]
        ]
        return [*noisy, *projected[len(noisy) :]]


def _views(maps: list[Tensor], batch: int) -> tuple[list[Tensor], list[Tensor]]:
    """Separate the maps of the images from those of their second views, if there are any."""
    parts = [m.split(batch) for m in maps]
    return [part[0] for part in parts], [part[1] for part in parts if len(part) > 1]
