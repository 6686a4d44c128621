"""Reverse distillation (Deng & Li, CVPR 2022, https://arxiv.org/abs/2201.10703) on any convolutional backbone."""

from itertools import pairwise
from pathlib import Path
from typing import Any

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
        >>> targets, inputs = network.encode(torch.zeros(2, 3, 64, 64))
        >>> embedding = network.embed(inputs)
        >>> embedding.shape
        torch.Size([2, 96, 2, 2])
        >>> [d.shape == t.shape for d, t in zip(network.decode(embedding), targets)]
        [True, True, True]
    """

    stride = 2 * STRIDES[-1]

    teacher: Teacher

    def __init__(
        self, backbone: str = "wide_resnet50_2", pre_trained: bool = True, weights: str | Path | None = None
    ) -> None:
        super().__init__()
        self.teacher = Teacher(backbone, pre_trained, weights)
        self.channels = list(self.teacher.out_dims)
        self.bottleneck: nn.Module
        self.decoder: nn.Module
        try:
            self.decoder = get_decoder(backbone)
            self.bottleneck = get_bottleneck_layer(backbone)
            # anomalib keeps these two layers of the original code, but its forward does not use them: 8.4 million
            # values of a WideResNet-50-2.
            del self.bottleneck.conv4, self.bottleneck.bn4
        except ValueError:  # anomalib has none for this backbone
            self.decoder = Decoder(self.channels)
            self.bottleneck = Bottleneck(self.channels)

    def encode(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Extract the teacher's feature maps at strides 4, 8 and 16, targets and inputs at once; see the base class."""
        features = self.teacher.features(images)
        return features, features

    def embed(self, inputs: list[Tensor]) -> Tensor:
        """Fuse the feature maps into an embedding map at stride 32; see the base class."""
        return self.bottleneck(inputs)

    def decode(self, embedding: Tensor) -> list[Tensor]:
        """Reconstruct the teacher's feature maps; see the base class."""
        return self.decoder(embedding)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # noqa: ANN401
        # Earlier checkpoints hold the two layers that are not used.
        for name in [n for n in state_dict if n.startswith((f"{prefix}bottleneck.conv4.", f"{prefix}bottleneck.bn4."))]:
            del state_dict[name]
        super()._load_from_state_dict(state_dict, prefix, *args)


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
