"""Dinomaly (Guo et al., CVPR 2025, https://arxiv.org/abs/2405.14325), composed of anomalib's components."""

import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from anomalib.models.components import GaussianBlur2d
from anomalib.models.image.dinomaly import lightning_model, torch_model
from anomalib.models.image.dinomaly.components import (
    CosineHardMiningLoss,
    DinomalyMLP,
    LinearAttention,
    StableAdamW,
    WarmCosineScheduler,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from anomalib_ccl.errors import InputError
from anomalib_ccl.model.reconstruction.base import ReconstructionNetwork
from anomalib_ccl.model.reconstruction.frozen_backbone import TransformerTeacher
from anomalib_ccl.model.reconstruction.recipe import Recipe, trained_weights

_TRAINING: dict[str, Any] = lightning_model.TRAINING_CONFIG
_STEPS = lightning_model.MAX_STEPS_DEFAULT
_SIZE = lightning_model.DEFAULT_CROP_SIZE
# anomalib's layers for ViTs of so many blocks, which it finds by words in their names.
_LAYERS: dict[int, Any] = {
    depth: torch_model.DINO_ARCHITECTURES[name]["target_layers"]
    for depth, name in {12: "base", 24: "large", 32: "huge"}.items()
}
_HEAD_WIDTH = 64  # of all ViTs that anomalib has dimensions of


class Embedding(NamedTuple):
    """All tokens of images after the bottleneck, of shape ``(B, P + h·w, D)``, and the size (h, w) of their map."""

    tokens: Tensor
    size: torch.Size


def _stable_adamw(network: nn.Module, projections: nn.Module) -> Optimizer:
    return StableAdamW([{"params": trained_weights(network, projections)}], **_TRAINING["optimizer"])


class _WarmCosine(WarmCosineScheduler):
    """anomalib's schedule, but that its state does not hold its length: a training that goes on may be longer."""

    def state_dict(self) -> dict[str, Any]:
        """Give what counts the steps."""
        return {k: v for k, v in super().state_dict().items() if k not in ("schedule", "total_iters")}


def _warm_cosine(optimizer: Optimizer, steps: float) -> LRScheduler:
    # anomalib's own module has Lightning take a step of it with each epoch, so that the rate is 0 in the first one and
    # has hardly risen after 20; here it is one of the optimizer, as its figures and its paper mean it.
    total = _STEPS if math.isinf(steps) else int(steps)
    configured = _TRAINING["scheduler"]
    # anomalib's warm-up of 100 steps would leave a short training without full learning rates.
    warm = min(configured["warmup_iters"], total // 2)
    schedule = _WarmCosine(optimizer, **{**configured, "total_iters": total, "warmup_iters": warm})
    schedule.schedule = schedule.schedule.tolist()  # a checkpoint that is read safely holds no arrays of numpy
    return schedule


class Dinomaly(ReconstructionNetwork):
    """A frozen ViT, a noisy bottleneck and a decoder with linear attention, which reconstruct two groups of layers.

    The mean of eight middle layers of the teacher is projected and goes through the bottleneck; two groups of four of
    them are the targets. Class and register tokens pass by the projection. Without a projection and without contrastive
    losses it is anomalib's ``Dinomaly``: the same losses, gradients, maps and scores.

    Images are resized to 392 × 392 pixels. anomalib resizes them to 448 × 448 and cuts the middle 392 × 392 out, as the
    paper does, which loses the border; ``pre_processor=Dinomaly.configure_pre_processor()`` does that here too.

    Args:
        backbone: Name of a plain timm ViT of 12, 24 or 32 blocks that has a class token.
        pre_trained: Whether the teacher uses timm's pre-trained weights.
        weights: A file with the teacher's weights, used instead of timm's.
        use_context_recentering: Whether the class token is subtracted from the patch tokens before anything else
            (Guo et al., "One Dinomaly2 Detect Them All", 2025), which helps most with many products.
        bottleneck_dropout: Share of the values that the bottleneck drops in training.

    Raises:
        InputError: If the backbone is unknown or no such ViT, or its weights cannot be found, read or used.

    Example:
        >>> network = Dinomaly("vit_tiny_patch16_224", pre_trained=False)
        >>> targets, inputs = network.encode(torch.zeros(2, 3, 64, 64))
        >>> [tuple(t.shape) for t in targets], [tuple(x.shape) for x in inputs]
        ([(2, 192, 4, 4), (2, 192, 4, 4)], [(2, 192, 4, 4), (2, 1, 192)])
        >>> [d.shape == t.shape for d, t in zip(network.decode(network.embed(inputs)), targets)]
        [True, True]
    """

    recipe: ClassVar[Recipe] = Recipe(
        _stable_adamw,
        _warm_cosine,
        gradient_norm=_TRAINING["trainer"]["gradient_clip_val"],
        image_size=(_SIZE, _SIZE),
        steps=_STEPS,
        noise_probability=0.0,
    )
    teacher: TransformerTeacher

    def __init__(
        self,
        backbone: str = "vit_base_patch14_reg4_dinov2",
        pre_trained: bool = True,
        weights: str | Path | None = None,
        use_context_recentering: bool = False,
        bottleneck_dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.teacher = TransformerTeacher(backbone, partial(_middle_blocks, backbone), pre_trained, weights)
        if not self.teacher.has_class_token:
            msg = f"backbone {backbone!r} has no class token, which dinomaly needs; choose vit_base_patch14_reg4_dinov2"
            raise InputError(msg)
        width, self.stride = self.teacher.width, self.teacher.stride
        self.channels = [width]
        self.use_context_recentering = use_context_recentering
        self.prefix = 0 if use_context_recentering else self.teacher.prefix  # tokens before those of the patches
        ratio = int(torch_model.TRANSFORMER_CONFIG["mlp_ratio"])
        self.bottleneck = nn.ModuleList(
            [DinomalyMLP(width, ratio * width, width, drop=bottleneck_dropout, bias=False, apply_input_dropout=True)]
        )
        self.groups = torch_model.DEFAULT_FUSE_LAYERS
        norm: Any = partial(nn.LayerNorm, eps=torch_model.TRANSFORMER_CONFIG["layer_norm_eps"])
        self.decoder = nn.ModuleList(
            torch_model.DecoderViTBlock(width, width // _HEAD_WIDTH, norm_layer=norm, attn=LinearAttention)
            for _ in range(sum(map(len, self.groups)))
        )
        lightning_model.Dinomaly._initialize_trainable_modules(nn.ModuleList([self.bottleneck, self.decoder]))
        self.loss = CosineHardMiningLoss()
        self.blur = GaussianBlur2d(
            sigma=torch_model.DEFAULT_GAUSSIAN_SIGMA, channels=1, kernel_size=torch_model.DEFAULT_GAUSSIAN_KERNEL_SIZE
        )

    def encode(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Give two groups of layers as targets, and the mean of all layers as input; see the base class."""
        layers = self.teacher.features(images)
        if self.use_context_recentering:
            layers = [tokens[:, self.teacher.prefix :] - tokens[:, :1] for tokens in layers]
        mean = _mean_of(layers, range(len(layers)))
        means = [*(_mean_of(layers, group) for group in self.groups), mean]
        maps = [self.teacher.as_map(tokens[:, self.prefix :], images).contiguous() for tokens in means]
        return maps[:-1], [maps[-1], mean[:, : self.prefix]]

    def embed(self, inputs: list[Tensor]) -> Embedding:
        """Pass all tokens through the noisy bottleneck; see the base class."""
        patches, prefix = inputs
        tokens = torch.cat([prefix, patches.flatten(2).transpose(1, 2)], dim=1)
        for block in self.bottleneck:
            tokens = block(tokens)
        return Embedding(tokens, patches.shape[-2:])

    def pool(self, embedding: Embedding) -> Tensor:
        """Average the patch tokens; see the base class."""
        return embedding.tokens[:, self.prefix :].mean(dim=1)

    def decode(self, embedding: Embedding) -> list[Tensor]:
        """Reconstruct both groups, the last blocks the first one; see the base class."""
        tokens, size = embedding
        layers = []
        for block in self.decoder:
            tokens = block(tokens)
            layers.append(tokens)
        groups = (_mean_of(layers[::-1], group)[:, self.prefix :] for group in self.groups)
        return [group.transpose(1, 2).unflatten(2, size).contiguous() for group in groups]

    def reconstruction_loss(self, targets: list[Tensor], reconstructed: list[Tensor], progress: float) -> Tensor:
        """Compute anomalib's loss, which turns to hard positions in the first 1,000 steps; see the base class."""
        step = getattr(progress, "step", round(progress * _STEPS))
        return self.loss(targets, reconstructed, step)

    def anomaly_map(self, targets: list[Tensor], reconstructed: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Average the cosine distances of both groups; see the base class."""
        return torch_model.DinomalyModel.calculate_anomaly_maps(targets, reconstructed, size)[0]

    def score(self, anomaly_map: Tensor) -> Tensor:
        """Average the top 1 % of the smoothed map at 256 × 256 pixels; see the base class."""
        small = F.interpolate(anomaly_map, torch_model.DEFAULT_RESIZE_SIZE, mode="bilinear", align_corners=False)
        values = self.blur(small).flatten(1)
        count = int(values.shape[1] * torch_model.DEFAULT_MAX_RATIO)
        return values.topk(count, dim=1).values.mean(dim=1, keepdim=True)


def _middle_blocks(backbone: str, depth: int) -> list[int]:
    if depth not in _LAYERS:
        msg = (
            f"backbone {backbone!r} has {depth} blocks; dinomaly knows which layers to take of "
            f"{', '.join(map(str, _LAYERS))}: choose for example vit_base_patch14_reg4_dinov2"
        )
        raise InputError(msg)
    return [layer + 1 for layer in _LAYERS[depth]]


def _mean_of(layers: list[Tensor], group: Iterable[int]) -> Tensor:
    return torch.stack([layers[index] for index in group]).mean(dim=0)
