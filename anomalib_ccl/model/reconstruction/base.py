"""What CCL needs of a reconstruction network."""

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.func import functional_call


class ReconstructionNetwork(nn.Module, ABC):
    """A frozen teacher, a bottleneck and a decoder that reconstructs the teacher's features.

    Attributes:
        channels: Channels of each of the teacher's feature maps, fine to coarse.
        stride: Height and width of the images must be multiples of this many pixels.
        bottleneck: The module that :meth:`embed` calls.
    """

    channels: list[int]
    stride: int
    bottleneck: nn.Module

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

    def embed_view(self, features: list[Tensor]) -> Tensor:
        """Fuse the maps of second views in training, as :meth:`embed` does but with no trace in running statistics.

        Batch norm normalises the views by their own statistics, so that the embedding of the images is what it is
        without views. Normalising both by the images' statistics, in one pass of twice the batch, was no faster and
        took more memory: forward and backward pass of the bottleneck of WideResNet-50-2 (256 × 256 pixels, batch 8,
        one busy core) 9.2 s and 426 MiB in two passes, 13.4 s and 616 MiB in one; of ``tf_efficientnet_lite0``
        (160 × 160 pixels, batch 16) 0.35 s and 37 MiB, 0.36 s and 52 MiB. Without views they took 6.5 s and 0.22 s.

        Args:
            features: Maps in the shapes that :meth:`encode` returns.

        Returns:
            The embedding map, as from :meth:`embed`.
        """
        buffers = {name: buffer.clone() for name, buffer in self.bottleneck.named_buffers()}
        return functional_call(self.bottleneck, buffers, (features,))

    @abstractmethod
    def decode(self, embedding: Tensor) -> list[Tensor]:
        """Reconstruct the teacher's feature maps from the embedding map.

        Args:
            embedding: What :meth:`embed` returned.

        Returns:
            Maps in the shapes that :meth:`encode` returns.
        """
