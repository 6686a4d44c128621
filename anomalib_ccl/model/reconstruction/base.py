"""What CCL needs of a reconstruction network."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from anomalib_ccl.errors import InputError
from anomalib_ccl.model.anomaly_map import anomaly_map
from anomalib_ccl.model.precision import upcast
from anomalib_ccl.model.reconstruction.frozen_backbone import FrozenBackbone
from anomalib_ccl.model.reconstruction.recipe import Recipe


class ReconstructionNetwork(nn.Module, ABC):
    """Encodes images into maps, fuses some of them into an embedding, and reconstructs others from it.

    A network of your own is a subclass: :meth:`encode`, :meth:`embed` and :meth:`decode` with the attributes
    ``channels`` and ``stride`` are enough; losses, maps, scores and recipe are those of reverse distillation unless
    it has others. Its constructor takes ``backbone``, ``pre_trained`` and ``weights`` if it has a timm network to build
    and to load, and whatever else it likes, as plain data, which ``reconstruction_args`` of
    :class:`~anomalib_ccl.CCL` gives to it.

    Attributes:
        channels: Channels of each of the maps that are projected.
        stride: Height and width of the images must be multiples of this many pixels.
        recipe: How the network is trained where the user says nothing else.
        teacher: The frozen, pre-trained part, if the network has one.
    """

    channels: Sequence[int]
    stride: int
    recipe: ClassVar[Recipe] = Recipe()
    teacher: FrozenBackbone | None

    def __init__(self) -> None:
        super().__init__()
        self.teacher = None

    def load_when_needed(self, weights: str | Path | None = None) -> None:
        """Load the teacher's weights, timm's or those of a file, before they are first used."""
        if self.teacher is not None:
            self.teacher.load_when_needed(weights)
        elif weights is not None:
            msg = f"{type(self).__name__} has no pre-trained teacher; leave backbone_weights={str(weights)!r} away"
            raise InputError(msg)

    @abstractmethod
    def encode(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Make of images what is to be reconstructed, and what is projected.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            The targets, and the inputs. The first inputs, as many as there are :attr:`channels`, are maps of shape
            ``(B, C_l, H_l, W_l)``, which are projected; any that follow, such as class tokens, have the images as their
            first dimension, and reach :meth:`embed` as they are. The two lists may share maps.
        """

    @abstractmethod
    def embed(self, inputs: list[Tensor]) -> Any:  # noqa: ANN401  # what decode and pool of the same network take
        """Fuse the inputs, of which the maps are projected now, into one embedding.

        Args:
            inputs: What :meth:`encode` gave, with projected maps.

        Returns:
            The embedding map, of shape ``(B, D, H', W')``, or whatever :meth:`decode` and :meth:`pool` understand.
        """

    @abstractmethod
    def decode(self, embedding: Any) -> list[Tensor]:  # noqa: ANN401
        """Reconstruct the targets from the embedding.

        Args:
            embedding: What :meth:`embed` returned.

        Returns:
            Maps in the shapes of the targets.
        """

    def pool(self, embedding: Any) -> Tensor:  # noqa: ANN401
        """Make one vector of the embedding of each image, which tells its class.

        Args:
            embedding: What :meth:`embed` returned.

        Returns:
            The mean over its positions, of shape ``(B, D)``.
        """
        return embedding.mean(dim=(-2, -1))

    def forward(self, inputs: list[Tensor]) -> Any:  # noqa: ANN401
        """Embed, as :meth:`embed` does."""
        return self.embed(inputs)

    def embed_view(self, inputs: list[Tensor]) -> Any:  # noqa: ANN401
        """Embed second views in training, as :meth:`embed` does but with no trace in running statistics.

        Batch norm normalises the views by their own statistics. One pass of twice the batch, normalised by the images'
        statistics, was no faster and took more memory.

        Args:
            inputs: What :meth:`encode` gave, with projected maps.

        Returns:
            The embedding, as from :meth:`embed`.
        """
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        return functional_call(self, buffers, (inputs,))

    def reconstruction_loss(self, targets: list[Tensor], reconstructed: list[Tensor], progress: float) -> Tensor:
        r"""Tell how far a reconstruction is from its targets, for training.

        It is reverse distillation's cosine distance of the whole maps (Deng & Li, CVPR 2022,
        https://arxiv.org/abs/2201.10703), in single precision at least:

        .. math:: L = \sum_l mean_i [1 - \cos(vec f_{l,i}, vec d_{l,i})]

        Args:
            targets: What :meth:`encode` gave.
            reconstructed: What :meth:`decode` returned.
            progress: Share of the training that is over, in [0, 1].

        Returns:
            A scalar in [0, 2 × maps].
        """
        del progress
        losses = []
        # anomalib's ReverseDistillationLoss keeps normalised copies of all maps for the gradient; this keeps none.
        with torch.autocast(targets[0].device.type, enabled=False):
            for f, d in zip(map(_flat, targets), map(_flat, reconstructed), strict=True):
                lengths = [torch.linalg.vector_norm(x, dim=1).clamp_min(1e-8) for x in (f, d)]
                losses.append((1 - (f * d).sum(dim=1) / (lengths[0] * lengths[1])).mean())
        return torch.stack(losses).sum()

    def anomaly_map(self, targets: list[Tensor], reconstructed: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Tell where a reconstruction is far from its targets.

        Args:
            targets: What :meth:`encode` gave.
            reconstructed: What :meth:`decode` returned.
            size: Height and width of the images, in pixels.

        Returns:
            A map of shape ``(B, 1, H, W)``, at least 0: see :func:`~anomalib_ccl.model.anomaly_map.anomaly_map`.
        """
        return anomaly_map(targets, reconstructed, size)

    def score(self, anomaly_map: Tensor) -> Tensor:
        """Make one score of the map of each image.

        Args:
            anomaly_map: What :meth:`anomaly_map` returned.

        Returns:
            The maximum of the map, of shape ``(B, 1)``.
        """
        return anomaly_map.amax(dim=(-2, -1))


def _flat(x: Tensor) -> Tensor:
    """Make one vector of each map, in the order in which the maps of the network need no copy."""
    return upcast(x).movedim(1, -1).flatten(1)
