"""ViTAD (Zhang et al., https://arxiv.org/abs/2312.07495): reconstruction with plain vision transformers."""

from pathlib import Path
from typing import ClassVar

import torch
from timm.layers import resample_abs_pos_embed, trunc_normal_
from timm.models.vision_transformer import Block, init_weights_vit_timm
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from anomalib_ccl.model.reconstruction.base import ReconstructionNetwork
from anomalib_ccl.model.reconstruction.frozen_backbone import TransformerTeacher
from anomalib_ccl.model.reconstruction.recipe import Recipe, View, trained_weights


def _adamw(network: nn.Module, projections: nn.Module) -> Optimizer:
    return AdamW(trained_weights(network, projections), lr=1e-4, weight_decay=1e-4)


def _quarters(depth: int) -> list[int]:
    """Blocks 3, 6 and 9 of 12, and the last one."""
    return [depth // 4, depth // 2, depth * 3 // 4, depth]


class ViT(ReconstructionNetwork):
    """A frozen ViT, a linear bottleneck, and a decoder of ViT blocks that goes the same way back.

    Of a ViT of twelve blocks, the patch tokens after the last are projected and, through a linear layer, embedded; the
    decoder's blocks 9, 6 and 3 reconstruct those after blocks 3, 6 and 9. Class and register tokens are left out.

    Args:
        backbone: Name of a plain timm ViT of at least four blocks, with patches of any size.
        pre_trained: Whether the teacher uses timm's pre-trained weights.
        weights: A file with the teacher's weights, used instead of timm's.

    Raises:
        InputError: If the backbone is unknown or no plain ViT, or its weights cannot be found, read or used.

    Example:
        >>> network = ViT("test_vit", pre_trained=False)
        >>> targets, inputs = network.encode(torch.zeros(2, 3, 64, 64))
        >>> embedding = network.embed(inputs)
        >>> embedding.shape
        torch.Size([2, 64, 4, 4])
        >>> [d.shape == t.shape for d, t in zip(network.decode(embedding), targets)]
        [True, True, True]
    """

    recipe: ClassVar[Recipe] = Recipe(
        _adamw,
        batch_size=8,
        temperature=0.1,
        noise_probability=0.0,
        view=View(scale=(0.7, 1.0), rotation=30.0, blur_kernels=(5, 9)),
    )
    teacher: TransformerTeacher

    def __init__(
        self, backbone: str = "vit_small_patch16_224.dino", pre_trained: bool = True, weights: str | Path | None = None
    ) -> None:
        super().__init__()
        self.teacher = TransformerTeacher(backbone, _quarters, pre_trained, weights)
        self.channels, self.stride = [self.teacher.width], self.teacher.stride
        self.bottleneck = nn.Linear(self.teacher.width, self.teacher.width)
        height, width = (round(side / self.stride) for side in self.recipe.image_size)
        self.decoder = Decoder(self.teacher, (height, width))
        self.bottleneck.apply(init_weights_vit_timm)
        self.decoder.apply(init_weights_vit_timm)

    def encode(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Give the maps after three blocks as targets, and that after the last as input; see the base class."""
        prefix = self.teacher.prefix
        *targets, last = (self.teacher.as_map(tokens[:, prefix:], images) for tokens in self.teacher.features(images))
        return targets, [last]

    def embed(self, inputs: list[Tensor]) -> Tensor:
        """Pass each token of the input through a linear layer; see the base class."""
        return self.bottleneck(inputs[0].movedim(1, -1)).movedim(-1, 1)

    def decode(self, embedding: Tensor) -> list[Tensor]:
        """Reconstruct the maps after three blocks; see the base class."""
        return self.decoder(embedding)

    def score(self, anomaly_map: Tensor) -> Tensor:
        """Take the maximum of the map after a mean over 16 × 16 pixels; see the base class."""
        return F.avg_pool2d(anomaly_map, 16, stride=1).amax(dim=(-2, -1))


class Decoder(nn.Module):
    """ViT blocks with a position embedding of their own and no class token."""

    def __init__(self, teacher: TransformerTeacher, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.position = nn.Parameter(torch.zeros(1, grid[0] * grid[1], teacher.width))
        trunc_normal_(self.position, std=0.02)
        self.targets = _quarters(teacher.depth)[:-1]
        heads = teacher.feature_extractor.blocks[0].attn.num_heads
        self.blocks = nn.ModuleList(Block(teacher.width, heads, qkv_bias=True) for _ in range(self.targets[-1]))

    def forward(self, embedding: Tensor) -> list[Tensor]:
        """Reconstruct the maps."""
        size = embedding.shape[-2:]
        # Without antialiasing, as anomalib has timm resample the teacher's, because no exporter has it.
        position = resample_abs_pos_embed(
            self.position, list(size), list(self.grid), num_prefix_tokens=0, antialias=False
        )
        tokens = embedding.flatten(2).transpose(1, 2) + position
        maps = []
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens)
            if number in self.targets:
                maps.append(tokens.transpose(1, 2).unflatten(2, size))
        return maps[::-1]
