"""The frozen, pre-trained teacher of networks on vision transformers: a plain timm ViT."""

from collections.abc import Callable
from pathlib import Path

import timm
import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from anomalib_ccl.model.reconstruction.frozen_backbone import FrozenBackbone, check_known


class TransformerTeacher(FrozenBackbone):
    """Token sequences after some of the blocks of a plain timm ViT that never changes.

    Any size that the patch divides will do: timm resamples the position embedding.

    Args:
        backbone: Name of a plain timm ViT, for example ``"vit_small_patch16_224.dino"``.
        blocks: Chooses the blocks, counted from 1, by the number of all.
        pre_trained: Whether to use timm's pre-trained weights; otherwise they are random.
        weights: A ``.safetensors`` or ``.pth`` file with the backbone's weights, used instead of timm's.

    Attributes:
        stride: Height and width of a patch, in pixels.
        depth: Number of all blocks.
        width: Length of a token.
        has_class_token: Whether the first token is one of the class.

    Raises:
        ValueError: If the backbone is unknown or no plain ViT, or the file holds other weights.
        FileNotFoundError: If the file does not exist.
        OSError: If the weights cannot be downloaded.

    Example:
        >>> teacher = TransformerTeacher("test_vit", lambda depth: [1, depth], pre_trained=False)
        >>> [tuple(tokens.shape) for tokens in teacher.tokens(torch.zeros(1, 3, 64, 32))]
        [(1, 9, 64), (1, 9, 64)]
        >>> [tuple(m.shape) for m in teacher.maps(torch.zeros(1, 3, 64, 32))]
        [(1, 64, 4, 2), (1, 64, 4, 2)]
    """

    def __init__(
        self,
        backbone: str,
        blocks: Callable[[int], list[int]],
        pre_trained: bool = True,
        weights: str | Path | None = None,
    ) -> None:
        plan = _plan(backbone)
        self.depth, self.width, self.prefix = len(plan.blocks), plan.embed_dim, plan.num_prefix_tokens
        self.has_class_token = plan.cls_token is not None
        layers = [f"blocks.{number - 1}" for number in blocks(self.depth)]
        tokens = {"output_fmt": "NLC", "return_class_token": self.prefix > 0, "norm": False}
        super().__init__(backbone, layers, pre_trained, weights, **tokens)
        self.stride = self.patch_size

    def tokens(self, images: Tensor) -> list[Tensor]:
        """Extract the token sequences after the chosen blocks.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            Sequences of shape ``(B, P + H W / stride², D)``, without gradient, that begin with the P class and register
            tokens.
        """
        self.load_awaited()
        return list(self(images).values())

    def maps(self, images: Tensor) -> list[Tensor]:
        """Extract the maps of the patch tokens after the chosen blocks.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            Maps of shape ``(B, D, H / stride, W / stride)``, without gradient.
        """
        return [self.as_map(tokens[:, self.prefix :], images) for tokens in self.tokens(images)]

    def as_map(self, patches: Tensor, images: Tensor) -> Tensor:
        """Lay the patch tokens of images out as a map.

        Args:
            patches: Patch tokens of shape ``(B, H W / stride², D)``.
            images: The images, of shape ``(B, 3, H, W)``.

        Returns:
            The map, of shape ``(B, D, H / stride, W / stride)``.
        """
        height, width = (length // self.stride for length in images.shape[-2:])
        return patches.transpose(1, 2).unflatten(2, (height, width))


def _plan(backbone: str) -> VisionTransformer:
    """Build a ViT without weights, to learn its sizes."""
    check_known(backbone)
    with torch.device("meta"):
        plan = timm.create_model(backbone)
    if not isinstance(plan, VisionTransformer) or type(plan.patch_embed) is not PatchEmbed:
        msg = (
            f"backbone {backbone!r} is no plain vision transformer of timm; choose one, for example "
            "vit_small_patch16_224.dino or vit_small_patch14_dinov2, or reconstruction='reverse_distillation'"
        )
        raise ValueError(msg)
    return plan
