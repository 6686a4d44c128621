"""The frozen, pre-trained teacher of reverse distillation: a convolutional timm backbone."""

from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from anomalib_ccl.model.reconstruction.frozen_backbone import FrozenBackbone, check_known

STRIDES = (4, 8, 16)


class Teacher(FrozenBackbone):
    """Feature maps at strides 4, 8 and 16 of a convolutional timm backbone that never changes.

    Args:
        backbone: Name of a convolutional timm model, for example ``"wide_resnet50_2"``.
        pre_trained: Whether to use timm's pre-trained weights; otherwise they are random.
        weights: A ``.safetensors`` or ``.pth`` file with the backbone's weights, used instead of timm's.

    Raises:
        ValueError: If the backbone is unknown or not convolutional, or the file holds other weights.
        FileNotFoundError: If the file does not exist.
        OSError: If the weights cannot be downloaded.

    Example:
        >>> import torch
        >>> teacher = Teacher("resnet18", pre_trained=False)
        >>> [tuple(f.shape) for f in teacher.features(torch.zeros(1, 3, 64, 64))]
        [(1, 64, 16, 16), (1, 128, 8, 8), (1, 256, 4, 4)]
    """

    def __init__(self, backbone: str, pre_trained: bool = True, weights: str | Path | None = None) -> None:
        super().__init__(backbone, _scale_indices(backbone), pre_trained, weights)

    def features(self, images: Tensor) -> list[Tensor]:
        """Extract the feature maps of all scales.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            Maps of shape ``(B, C_l, H / s_l, W / s_l)`` at strides s = 4, 8, 16, without gradient.
        """
        self.load_awaited()
        return list(self(images).values())


def _scale_indices(backbone: str) -> list[int]:
    """Find which of a backbone's feature maps have the strides 4, 8 and 16."""
    check_known(backbone)
    advice = "choose a convolutional one, for example wide_resnet50_2, tf_efficientnet_lite0 or convnext_tiny"
    # anomalib's extractor reads every name with "vit" in it as a plain transformer.
    if "vit" in backbone.lower():
        msg = f"backbone {backbone!r} is a vision transformer; {advice}, or reconstruction='vit'"
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
