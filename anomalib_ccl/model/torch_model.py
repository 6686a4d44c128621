"""The CCL network (Fan et al., https://arxiv.org/abs/2412.04769)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from anomalib_ccl.errors import InputError
from anomalib_ccl.model.calibration import ClassCalibration
from anomalib_ccl.model.memory import ClassMemory
from anomalib_ccl.model.outputs import Look, Prediction, TrainingOutput, embedding_of
from anomalib_ccl.model.patches import patches_of, pooled_features
from anomalib_ccl.model.projection import Projection, added_at_unit_scale, disturbed, projection_layer
from anomalib_ccl.model.reconstruction.choice import make_network
from anomalib_ccl.model.refined_map import refined_map
from anomalib_ccl.model.tiling import Tiling, check_divisible
from anomalib_ccl.names import check_choice

AnomalyMap = Literal["paper", "refined"]

# Share of the reconstruction's map where it is added to the memory's, each in multiples of its normal level.
RECONSTRUCTION_SHARE = 0.3


class CCLModel(nn.Module):
    """A reconstruction network whose features are projected before the bottleneck fuses them, and a memory of patches.

    In reverse distillation, a frozen teacher gives multi-scale features f, projections make p of them, a bottleneck
    fuses p into an embedding e, and a decoder reconstructs f from e. Where the reconstruction fails, the image is
    anomalous. Once calibrated, the network recognises the class of an image by its embedding, looks its patches up in
    the memory of that class if there is one, and scores the image by the limit of the class.

    Args:
        backbone: Name of a timm model for the teacher; the reconstruction network's default if not given.
        pre_trained: Whether the teacher uses timm's pre-trained weights.
        backbone_weights: A ``.safetensors`` or ``.pth`` file with the teacher's weights, used instead of timm's.
        projection: The layers between teacher and bottleneck; see
            :func:`~anomalib_ccl.model.projection.projection_layer`.
        skip: Whether a skip connection adds the features, at unit scale, to their projections, so that no detail is
            lost in the projections' C/4 channels; the losses shape the projections alone.
        noise_probability: Probability, per training step, of noise on the projected features, in [0, 1]; the
            reconstruction network's default if not given.
        anomaly_map: How distances become a map: ``"paper"`` is the reconstruction network's own way, ``"refined"`` is
            :func:`~anomalib_ccl.model.refined_map.refined_map`.
        memory: Vectors of the memory of each class; 0 is no memory.
        reconstructs: Whether there is a reconstruction; without one, memory and teacher do all.
        false_alarm_rate: Probability with which a new normal image's score exceeds 1, in (0, 0.5].
        reconstruction: The reconstruction network: a name in :data:`~anomalib_ccl.model.reconstruction.choice.NETWORKS`
            or the path of a class derived from :class:`~anomalib_ccl.model.reconstruction.ReconstructionNetwork`.
        reconstruction_args: Further arguments of that network, by name.
        tiles: Rows and columns of overlapping tiles that images are cut into; see
            :class:`~anomalib_ccl.model.tiling.Tiling`. In :meth:`training_pass`, images are the tiles.

    Raises:
        InputError: If an argument is out of its range, or the weights cannot be found or read.

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
        memory: int = 0,
        reconstructs: bool = True,
        false_alarm_rate: float = 0.01,
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
            raise InputError(msg)
        check_choice("anomaly_map", anomaly_map, get_args(AnomalyMap))
        if not isinstance(memory, int) or memory < 0 or (memory == 0 and not reconstructs):
            msg = f"memory must be a number of vectors from 0 on, from 1 on without a reconstruction; got {memory!r}"
            raise InputError(msg)
        self.noise_probability = noise_probability
        self.skip = skip
        self.anomaly_map = anomaly_map
        self.reconstructs = reconstructs
        self.projections = nn.ModuleList(projection_layer(c, projection) for c in self.network.channels)
        self.calibration = ClassCalibration(false_alarm_rate)
        self.memory = ClassMemory(memory)
        # The faster order for convolutions, on processors and GPUs: their maps follow their weights.
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, product: Tensor | None = None) -> Prediction:
        """Score images, in eval mode, and recognise the class of each.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``, H and W multiples of the stride.
            product: Class of each image where it is known, of shape ``(B,)``; below 0 the class is recognised.

        Returns:
            The prediction. Before calibration, score and map are the raw ones.

        Raises:
            InputError: If the height or width of the images is not a multiple of the network's stride.
        """
        looks = self.look(images)
        embedding = embedding_of(looks)
        if not self.calibration.is_calibrated:
            raw_map = self.tiling.merge([self._reconstruction_of(look, images) for look in looks])
            score = self.score(raw_map)
            nothing = torch.zeros_like(score[:, 0], dtype=torch.long)  # of any batch, also in an exported graph
            return Prediction(score, None, raw_map, None, nothing, score, embedding)
        index = self.calibration.recognise(embedding)
        if product is not None:
            index = torch.where(product < 0, index, product)
        raw_map = self.tiling.merge([self.fuse(look, index, _size(images, self.tiling)) for look in looks])
        score = self.score(raw_map)
        anomaly_map, calibrated = self.calibration(raw_map, score, index)
        return Prediction(calibrated, None, anomaly_map, None, index, score, embedding)

    def look(self, images: Tensor) -> list[Look]:
        """See what is in images, in eval mode, tile by tile.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            What is seen in each tile; in the image itself where it is not cut.
        """
        tiles = self.tiling.cut(images)
        if torch.compiler.is_compiling() and len(tiles) > 1:  # so that an exported file has the network once
            found = self._look(torch.cat(tiles))
            # Not chunk, of whose parts an exporter does not know that they are as many as the images.
            shape = (len(tiles), images.shape[0])
            parts = [[None] * len(tiles) if x is None else x.unflatten(0, shape).unbind() for x in found]
            return [Look(*part) for part in zip(*parts, strict=True)]
        return [self._look(tile) for tile in tiles]

    def see(
        self, targets: list[Tensor], inputs: list[Tensor], size: tuple[int, int], remembered: list[Tensor] | None = None
    ) -> Look:
        """See what is in images or tiles, in eval mode, by what ``encode`` gave for them.

        Args:
            targets: The maps to reconstruct.
            inputs: The maps to project.
            size: Height and width of the images, in pixels.
            remembered: The targets that patches for the memory are made of, where they are others.

        Returns:
            What is seen.
        """
        patches = patches_of(remembered or targets) if self.memory.size else None
        if not self.reconstructs:
            return Look(pooled_features(targets), None, patches)
        embedding = self.network.embed(self._with_skip(inputs, self._project(inputs)))
        map_of = self.network.anomaly_map if self.anomaly_map == "paper" else refined_map
        found = map_of(targets, self.network.decode(embedding), size)
        return Look(self.network.pool(embedding), found, patches)

    def maps(
        self, look: Look, index: Tensor, size: tuple[int, int], excluded: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Make the maps of the reconstruction and of the memory.

        Args:
            look: What is seen in images or tiles.
            index: Class of each, of shape ``(B,)``.
            size: Their height and width, in pixels.
            excluded: As for :class:`~anomalib_ccl.model.memory.ClassMemory`.

        Returns:
            Both maps, of shape ``(B, 1, H, W)``; None where the model has no such.
        """
        of_memory = None
        if look.patches is not None and self.memory.is_built:
            of_memory = self.memory(look.patches, index, size, excluded)
        return look.reconstruction, of_memory

    def fuse(self, look: Look, index: Tensor, size: tuple[int, int], excluded: Tensor | None = None) -> Tensor:
        """Make one raw map: both maps in multiples of the class's normal level, added with fixed weights.

        Arguments are those of :meth:`maps`.

        Returns:
            The map, of shape ``(B, 1, H, W)``; a single one as it is.
        """
        of_reconstruction, of_memory = self.maps(look, index, size, excluded)
        if of_reconstruction is None or of_memory is None:
            return of_reconstruction if of_memory is None else of_memory  # type: ignore[return-value]
        levels = self.calibration.levels.index_select(0, index)[:, :, None, None, None]
        share = RECONSTRUCTION_SHARE
        return share * of_reconstruction / levels[:, 0] + (1 - share) * of_memory / levels[:, 1]

    def score(self, raw_map: Tensor) -> Tensor:
        """Make one score of the map of each image, that of its worst tile, of shape ``(B, 1)``."""
        return self.tiling.score(self.network.score if self.reconstructs else _maximum, raw_map)

    def training_pass(
        self,
        images: Tensor,
        view: Tensor | None = None,
        encoded: tuple[list[Tensor], list[Tensor]] | None = None,
        embed_view: bool = False,
    ) -> TrainingOutput:
        """Compute what the losses need, in training mode.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``, H and W multiples of the stride.
            view: Their second view, in the same shape.
            encoded: What the network's ``encode`` gave for the images; without it, it is run on them.
            embed_view: Whether the second view is embedded too, for a loss that compares embeddings of both. It
                leaves no trace in the running statistics, and its features are not reconstructed.

        Returns:
            Features, projections, reconstructions and embeddings.

        Raises:
            InputError: If the height or width of the images is not a multiple of the network's stride.
        """
        check_divisible(images, self.network.stride, self.tiling)
        targets, all_inputs = self._encode(images, view, encoded)
        inputs, view_inputs = _views(all_inputs, len(images))
        projected, view_projected = _views(self._project(all_inputs), len(images))
        projected = self._add_noise(projected)
        embedding = self.network.embed(self._with_skip(inputs, projected))
        view_embedding = self.network.embed_view(self._with_skip(view_inputs, view_projected)) if embed_view else None
        reconstructed = self.network.decode(embedding)
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

    def _look(self, images: Tensor) -> Look:
        """See what is in images or tiles."""
        check_divisible(images, self.network.stride, self.tiling)
        targets, inputs = self.network.encode(images)
        return self.see(targets, inputs, (images.shape[-2], images.shape[-1]))

    def _reconstruction_of(self, look: Look, images: Tensor) -> Tensor:
        """The map before calibration: nothing, where a memory does all that is not built yet."""
        if look.reconstruction is not None:
            return look.reconstruction
        return images.new_zeros(len(images), 1, *_size(images, self.tiling))

    def _encode(
        self, images: Tensor, view: Tensor | None, encoded: tuple[list[Tensor], list[Tensor]] | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Give the targets of the images, and the inputs of the images followed by those of their second views."""
        if encoded is None:
            # Both views in one pass: a processor does a larger batch faster.
            targets, inputs = self.network.encode(images if view is None else torch.cat([images, view]))
            return [target[: len(images)] for target in targets], inputs
        targets, inputs = encoded
        if view is not None:
            inputs = [torch.cat(pair) for pair in zip(inputs, self.network.encode(view)[1], strict=True)]
        return targets, inputs

    def _project(self, inputs: list[Tensor]) -> list[Tensor]:
        scales = len(self.projections)
        projected = [projection(x) for projection, x in zip(self.projections, inputs, strict=False)]
        return [*projected, *inputs[scales:]]

    def _with_skip(self, inputs: list[Tensor], projected: list[Tensor]) -> list[Tensor]:
        """Add the inputs to their projections, at unit scale, if that is asked for."""
        if not self.skip:
            return projected
        scales = len(self.projections)
        return [*map(added_at_unit_scale, inputs[:scales], projected[:scales]), *projected[scales:]]

    def _add_noise(self, projected: list[Tensor]) -> list[Tensor]:
        """Now and then disturb the projections, so that the bottleneck denoises."""
        if self.noise_probability == 0 or torch.rand(()) >= self.noise_probability:
            return projected
        scales = len(self.projections)
        return [*map(disturbed, projected[:scales]), *projected[scales:]]


def _size(images: Tensor, tiling: Tiling) -> tuple[int, int]:
    return tiling.tile_size((images.shape[-2], images.shape[-1]))


def _maximum(maps: Tensor) -> Tensor:
    return maps.amax(dim=(-2, -1))


def _views(maps: list[Tensor], batch: int) -> tuple[list[Tensor], list[Tensor]]:
    """Separate the maps of the images from those of their second views, if there are any."""
    parts = [m.split(batch) for m in maps]
    return [part[0] for part in parts], [part[1] for part in parts if len(part) > 1]
