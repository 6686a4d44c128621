"""Reverse distillation (Deng & Li, CVPR 2022, https://arxiv.org/abs/2201.10703) on any convolutional backbone."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
from anomalib.models.components.backbone import get_decoder
from anomalib.models.components.backbone.resnet_decoder import DecoderBasicBlock
from anomalib.models.image.reverse_distillation.components import get_bottleneck_layer
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock
from torchvision.ops import Conv2dNormActivation

from anomalib_ccl.errors import InputError
from anomalib_ccl.model.reconstruction.base import ReconstructionNetwork
from anomalib_ccl.model.reconstruction.frozen_backbone import FrozenBackbone, check_known

STRIDES = (4, 8, 16)
_EXAMPLE = (96, 64)


class ReverseDistillation(ReconstructionNetwork):
    """Teacher, one-class bottleneck and mirrored decoder of reverse distillation.

    For the ResNets that anomalib supports, bottleneck and decoder are anomalib's own; for any other convolutional
    backbone they are built in the same shape from the backbone's own channels.

    Args:
        backbone: Name of a convolutional timm model.
        pre_trained: Whether the teacher uses timm's pre-trained weights.
        weights: A file with the teacher's weights, used instead of timm's.

    Raises:
        InputError: If the backbone is unknown or not convolutional, or its weights cannot be found, read or used.

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
    teacher: FrozenBackbone

    def __init__(
        self, backbone: str = "wide_resnet50_2", pre_trained: bool = True, weights: str | Path | None = None
    ) -> None:
        super().__init__()
        self.teacher = FrozenBackbone(backbone, _scales(backbone), pre_trained, weights)
        self.channels = list(self.teacher.out_dims)
        self.bottleneck: nn.Module
        self.decoder: nn.Module
        try:
            self.decoder = get_decoder(backbone)
            self.bottleneck = get_bottleneck_layer(backbone)
            # anomalib's forward does not use these layers: 8.4 million values of a WideResNet-50-2.
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


def _scales(backbone: str) -> list[int]:
    """Find which of a backbone's feature maps have the strides 4, 8 and 16."""
    check_known(backbone)
    advice = "choose a convolutional one, for example wide_resnet50_2, tf_efficientnet_lite0 or convnext_tiny"
    # anomalib's extractor reads every name with "vit" in it as a plain transformer.
    if "vit" in backbone.lower():
        msg = f"backbone {backbone!r} is taken for a vision transformer; {advice}, or reconstruction='vit'"
        raise InputError(msg)
    try:
        network: Any = timm.create_model(backbone, features_only=True)
        strides, channels = network.feature_info.reduction(), network.feature_info.channels()
        scales = [strides.index(stride) for stride in STRIDES]
        height, width = _EXAMPLE
        maps = network.eval().to("meta")(torch.empty(1, 3, height, width, device="meta"))  # without arithmetic
        expected = [(1, channels[scale], height // strides[scale], width // strides[scale]) for scale in scales]
        if [maps[scale].shape for scale in scales] != expected:
            raise ValueError(backbone)
        return scales
    except Exception as error:  # whatever a network raises that does not take images of any size
        msg = f"backbone {backbone!r} gives no maps at strides 4, 8 and 16 for images of any size; {advice}"
        raise InputError(msg) from error


class Bottleneck(nn.Module):
    """Bring all scales to the coarsest, fuse them and halve the resolution once more."""

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
        """Fuse the maps."""
        same_size = [layers(f) for layers, f in zip(self.downsample, features, strict=True)]
        return self.fuse(torch.cat(same_size, dim=1))


class Decoder(nn.Module):
    """Mirror the backbone: each stage doubles the resolution and ends with one scale's channels.

    A linear layer makes each reconstruction: many backbones' features are negative as often as positive, which
    the ReLU at the end of a stage could not follow.
    """

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        coarse_to_fine = [2 * channels[-1], *reversed(channels)]
        self.stages = nn.ModuleList(
            nn.Sequential(_doubled(before, after), DecoderBasicBlock(after, after))
            for before, after in pairwise(coarse_to_fine)
        )
        self.heads = nn.ModuleList(nn.Conv2d(c, c, kernel_size=1) for c in coarse_to_fine[1:])

    def forward(self, embedding: Tensor) -> list[Tensor]:
        """Reconstruct the maps."""
        maps = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            embedding = stage(embedding)
            maps.append(head(embedding))
        return maps[::-1]


def _doubled(before: int, after: int) -> DecoderBasicBlock:
    upsample = nn.Sequential(nn.ConvTranspose2d(before, after, 2, stride=2, bias=False), nn.BatchNorm2d(after))
    return DecoderBasicBlock(before, after, stride=2, upsample=upsample)
