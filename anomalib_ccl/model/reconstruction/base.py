"""What CCL needs of a reconstruction network."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class ReconstructionNetwork(nn.Module, ABC):
    """A frozen teacher, a bottleneck and a decoder that reconstructs the teacher's features.

    Attributes:
        channels: Channels of each of the teacher's feature maps, fine to coarse.
        stride: Height and width of the images must be multiples of this many pixels.
    """

    channels: list[int]
    stride: int

    @abstractmethod
    def encode(self, images: Tensor) -> list[Tensor]:
        """Extract the teacher's feature maps.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            One map of shape ``(B, C_l, H_l, W_l)`` per scale, without gradient.
        """

    @abstractmethod
    def embed(self, features: list[Tensor]) -> Tensor:
        """Fuse the (projected) feature maps of all scales into one embedding map.

        Args:
            features: Maps in the shapes that :meth:`encode` returns.

        Returns:
            The embedding map, of shape ``(B, D, H / stride, W / stride)``.
        """

    @abstractmethod
    def decode(self, embedding: Tensor) -> list[Tensor]:
        """Reconstruct the teacher's feature maps from the embedding map.

        Args:
            embedding: What :meth:`embed` returned.

        Returns:
            Maps in the shapes that :meth:`encode` returns.
        """
