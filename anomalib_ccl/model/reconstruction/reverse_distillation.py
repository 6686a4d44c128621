"""Reverse distillation (Deng & Li, CVPR 2022, https://arxiv.org/abs/2201.10703) on any convolutional backbone."""

from itertools import pairwise
from pathlib import Path

import torch
from anomalib.models.components.backbone import get_decoder
from anomalib.models.components.backbone.resnet_decoder import DecoderBasicBlock
from anomalib.models.image.reverse_distillation.components import get_bottleneck_layer
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock
from torchvision.ops import Conv2dNormActivation

from anomalib_ccl.model.reconstruction.base import ReconstructionNetwork
from anomalib_ccl.model.reconstruction.teacher import STRIDES, Teacher


class ReverseDistillation(ReconstructionNetwork):
    """Teacher, one-class bottleneck and mirrored decoder of reverse distillation.

    For the ResNets that anomalib supports, bottleneck and decoder are anomalib's own; for any other convolutional
    backbone they are built in the same shape from the backbone's own channels.

    Args:
        backbone: Name of a convolutional timm model.
        pre_trained: Whether the teacher uses timm's pre-trained weights.
        weights: A file with the teacher's weights, used instead of timm's.

    Raises:
        ValueError: If the backbone is unknown or not convolutional, or the file holds other weights.
        FileNotFoundError: If the file does not exist.
        OSError: If the weights cannot be downloaded.

    Example:
        >>> network = ReverseDistillation("mobilenetv3_small_100", pre_trained=False)
        >>> features = network.encode(torch.zeros(2, 3, 64, 64))
        >>> embedding = network.embed(features)
        >>> embedding.shape
        torch.Size([2, 96, 2, 2])
        >>> [d.shape == f.shape for d, f in zip(network.decode(embedding), features)]
        [True, True, True]
    """

    stride = 2 * STRIDES[-1]

    def __init__(self, backbone: str, pre_trained: bool = True, weights: str | Path | None = None) -> None:
        super().__init__()
        self.teacher = Teacher(backbone, pre_trained, weights)
        self.channels = list(self.teacher.out_dims)
        self.bottleneck: nn.Module
        self.decoder: nn.Module
        try:
            self.decoder = get_decoder(backbone)
            self.bottleneck = get_bottleneck_layer(backbone)
            # anomalib keeps these two layers of the original code, but its forward does not use them.
            self.bottleneck.conv4.requires_grad_(requires_grad=False)
            self.bottleneck.bn4.requires_grad_(requires_grad=False)
        except ValueError:  # anomalib has none for this backbone
            self.decoder = Decoder(self.channels)
            self.bottleneck = Bottleneck(self.channels)

    def encode(self, images: Tensor) -> list[Tensor]:
        """Extract the teacher's feature maps at strides 4, 8 and 16; see the base class."""
        return self.teacher.features(images)

    def embed(self, features: list[Tensor]) -> Tensor:
        """Fuse the feature maps into an embedding map at stride 32; see the base class."""
        return self.bottleneck(features)

    def decode(self, embedding: Tensor) -> list[Tensor]:
        """Reconstruct the teacher's feature maps; see the base class."""
        return self.decoder(embedding)


class Bottleneck(nn.Module):
    """Bring all scales to the coarsest, fuse them and halve the resolution once more.

    Args:
        channels: Channels of the feature maps, fine to coarse, each at half the resolution of the one before.
    """

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        coarsest = channels[-1]
        self.downsample = nn.ModuleList(
            nn.Sequential(*(Conv2dNormActivation(a, b, 3, stride=2) for a, b in pairwise([*channels[i:-1], coarsest])))
            for i in range(len(channels))
        )
        fused, embedding = len(channels) * coarsest, 2 * coarsest
        shortcut = Conv2dNormActivation(fused, embedding, 1, stride=2, activation_layer=None)
        self.fuse = nn.Sequential(
            BasicBlock(fused, embedding, stride=2, downsample=shortcut), BasicBlock(embedding, embedding)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        """Fuse the maps.

        Args:
            features: Maps of shape ``(B, C_l, H_l, W_l)``, fine to coarse.

        Returns:
            The embedding map, of shape ``(B, 2 C_L, H_L / 2, W_L / 2)``.
        """
        same_size = [layers(f) for layers, f in zip(self.downsample, features, strict=True)]
        return self.fuse(torch.cat(same_size, dim=1))


class Decoder(nn.Module):
    """Mirror the backbone: each stage doubles the resolution and ends with one scale's channels.

    A linear layer makes each reconstruction: many backbones' features are negative as often as positive, which
    the ReLU at the end of a stage could not follow.

    Args:
        channels: Channels of the feature maps to reconstruct, fine to coarse.
    """

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        coarse_to_fine = [2 * channels[-1], *reversed(channels)]
        self.stages = nn.ModuleList(
            nn.Sequential(
                DecoderBasicBlock(before, after, stride=2, upsample=_upsample(before, after)),
                DecoderBasicBlock(after, after),
            )
            for before, after in pairwise(coarse_to_fine)
        )
        self.heads = nn.ModuleList(nn.Conv2d(c, c, kernel_size=1) for c in coarse_to_fine[1:])

    def forward(self, embedding: Tensor) -> list[Tensor]:
        """Reconstruct the maps.

        Args:
            embedding: The embedding map, of shape ``(B, 2 C_L, h, w)``.

        Returns:
            Maps of shape ``(B, C_l, H_l, W_l)``, fine to coarse; the coarsest is twice as large as the embedding.
        """
        maps = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            embedding = stage(embedding)
            maps.append(head(embedding))
        return maps[::-1]


def _upsample(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(before, after, 2, stride=2, bias=False), nn.BatchNorm2d(after))
