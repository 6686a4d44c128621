"""ViTAD (Zhang et al., https://arxiv.org/abs/2312.07495): reconstruction with plain vision transformers."""

from pathlib import Path
from typing import ClassVar

import torch
from timm.layers import resample_abs_pos_embed, trunc_normal_
from timm.models import named_apply
from timm.models.vision_transformer import Block, init_weights_vit_timm
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from anomalib_ccl.model.reconstruction.base import ReconstructionNetwork
from anomalib_ccl.model.reconstruction.recipe import Recipe, trained_weights
from anomalib_ccl.model.reconstruction.transformer_teacher import TransformerTeacher

_RATE = _WEIGHT_DECAY = 1e-4
# Side of the square of pixels over which the map is averaged before its maximum is the score.
_SCORE_WINDOW = 16


def _adamw(network: nn.Module, projections: nn.Module) -> Optimizer:
    return AdamW(trained_weights(network, projections), lr=_RATE, weight_decay=_WEIGHT_DECAY)


def _quarters(depth: int) -> list[int]:
    """Blocks 3, 6 and 9 of 12, and the last one."""
    return [depth // 4, depth // 2, depth * 3 // 4, depth]


class ViT(ReconstructionNetwork):
    """A frozen ViT, a linear bottleneck, and a decoder of ViT blocks that goes the same way back.

    Of a ViT of twelve blocks, the patch tokens after the last are projected and, through a linear layer, embedded; the
    decoder's blocks 9, 6 and 3 reconstruct those after blocks 3, 6 and 9. Class and register tokens are left out.

    What CCL's authors take for it: no noise, a temperature of 0.1, AdamW, batches of 8.

    Args:
        backbone: Name of a plain timm ViT of at least four blocks, with patches of any size.
        pre_trained: Whether the teacher uses timm's pre-trained weights.
        weights: A file with the teacher's weights, used instead of timm's.

    Raises:
        ValueError: If the backbone is unknown or no plain ViT, or the file holds other weights.
        FileNotFoundError: If the file does not exist.
        OSError: If the weights cannot be downloaded.

    Example:
        >>> network = ViT("test_vit", pre_trained=False)
        >>> targets, inputs = network.encode(torch.zeros(2, 3, 64, 64))
        >>> embedding = network.embed(inputs)
        >>> embedding.shape
        torch.Size([2, 64, 4, 4])
        >>> [d.shape == t.shape for d, t in zip(network.decode(embedding), targets)]
        [True, True, True]
    """

    recipe: ClassVar[Recipe] = Recipe(_adamw, batch_size=8, temperature=0.1, noise_probability=0.0)
    teacher: TransformerTeacher

    def __init__(
        self, backbone: str = "vit_small_patch16_224.dino", pre_trained: bool = True, weights: str | Path | None = None
    ) -> None:
        super().__init__()
        self.teacher = TransformerTeacher(backbone, _quarters, pre_trained, weights)
        width, self.stride = self.teacher.width, self.teacher.stride
        self.channels = [width]
        self.bottleneck = nn.Linear(width, width)
        sides = (round(side / self.stride) for side in self.recipe.image_size)
        self.decoder = Decoder(self.teacher, (next(sides), next(sides)))
        named_apply(init_weights_vit_timm, self.bottleneck)
        named_apply(init_weights_vit_timm, self.decoder)

    def encode(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Give the maps after three blocks as targets, and that after the last as input; see the base class."""
        *targets, last = self.teacher.maps(images)
        return targets, [last]

    def embed(self, inputs: list[Tensor]) -> Tensor:
        """Pass each token of the input through a linear layer; see the base class."""
        return self.bottleneck(inputs[0].movedim(1, -1)).movedim(-1, 1)

    def decode(self, embedding: Tensor) -> list[Tensor]:
        """Reconstruct the maps after three blocks; see the base class."""
        return self.decoder(embedding)

    def score(self, anomaly_map: Tensor) -> Tensor:
        """Take the maximum of the map after a mean over 16 × 16 pixels; see the base class."""
        return F.avg_pool2d(anomaly_map, _SCORE_WINDOW, stride=1).amax(dim=(-2, -1))


class Decoder(nn.Module):
    """ViT blocks with a position embedding of their own and no class token.

    Args:
        teacher: The teacher whose maps are reconstructed.
        grid: Rows and columns of the position embedding, which is resampled for maps of other sizes.
    """

    def __init__(self, teacher: TransformerTeacher, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.position = nn.Parameter(torch.zeros(1, grid[0] * grid[1], teacher.width))
        trunc_normal_(self.position, std=0.02)
        self.targets = _quarters(teacher.depth)[:-1]
        heads = teacher.feature_extractor.blocks[0].attn.num_heads
        self.blocks = nn.ModuleList(Block(teacher.width, heads, qkv_bias=True) for _ in range(self.targets[-1]))

    def forward(self, embedding: Tensor) -> list[Tensor]:
        """Reconstruct the maps.

        Args:
            embedding: The embedding map, of shape ``(B, D, h, w)``.

        Returns:
            Maps of the same shape: what the last block gives reconstructs the first target.
        """
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
