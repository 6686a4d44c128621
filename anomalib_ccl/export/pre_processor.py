"""Pre-processing that exported models do as the engine does."""

from collections.abc import Sequence
from typing import Any

import torch
from anomalib.pre_processing import PreProcessor
from anomalib.pre_processing.utils.transform import get_exportable_transform
from torch import Tensor
from torchvision.transforms.v2 import Compose, InterpolationMode, Normalize, Resize, Transform


class ExactPreProcessor(PreProcessor):
    """anomalib's pre-processor, but for one thing: exported, it smooths images before it makes them smaller.

    anomalib exports resizing without antialiasing, which OpenVINO's converter does not know. A camera's image is larger
    than the model's, so the exported model saw another image than the trained one: 256 px images in a 128 px model
    moved scores by up to 0.24.

    Args:
        transform: Transforms of an image, for example ``Compose([Resize((256, 256)), Normalize(mean, std)])``.

    Example:
        >>> pre_processor = ExactPreProcessor(Resize((32, 32)))
        >>> image = torch.rand(1, 3, 100, 80)
        >>> torch.testing.assert_close(pre_processor(image), pre_processor.transform(image))
    """

    def forward(self, batch: Tensor) -> Tensor:
        """Transform images in an exported model.

        Args:
            batch: Images of shape ``(B, 3, H, W)``.

        Returns:
            The transformed images.
        """
        for step in self.transform.transforms if isinstance(self.transform, Compose) else [self.transform]:
            if isinstance(step, Resize) and _is_antialiased(step):
                batch = resize(batch, *step.size)
            elif exportable := get_exportable_transform(step):
                batch = exportable(batch)
        return batch


def default_pre_processor(
    size: tuple[int, int], normalization: tuple[Sequence[float], Sequence[float]] | None
) -> ExactPreProcessor:
    """Resize images, then normalise them.

    Args:
        size: Height and width, in pixels.
        normalization: Mean and standard deviation of each channel; without, images stay in [0, 1].

    Returns:
        The pre-processor.
    """
    transforms: list[Transform] = [Resize(size, antialias=True)]
    if normalization is not None:
        mean, std = normalization
        transforms.append(Normalize(mean=mean, std=std))
    return ExactPreProcessor(Compose(transforms))


def _is_antialiased(transform: Resize) -> bool:
    return (
        transform.antialias is True
        and InterpolationMode(transform.interpolation) is InterpolationMode.BILINEAR
        and len(transform.size or ()) == 2
    )


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Resize images bilinearly, with antialiasing, by two matrix products, which every exporter has.

    Args:
        images: Images of shape ``(B, C, H, W)``.
        height: Height of the result, in pixels.
        width: Width of the result, in pixels.

    Returns:
        Images of shape ``(B, C, height, width)``, as of ``torch.nn.functional.interpolate`` with ``antialias=True``.
    """
    rows = _weights(images.shape[-2], height, images)
    columns = _weights(images.shape[-1], width, images)
    # Without the channels' dimension: OpenVINO's CPU plug-in fails to fuse a normalisation per channel into a product.
    return (rows @ (images.flatten(0, 1) @ columns.T)).unflatten(0, images.shape[:2])


def _weights(length: int, size: int, like: Tensor) -> Tensor:
    """How much each of ``length`` pixels contributes to each of ``size``: a triangle as wide as the pixels shrink."""
    scale = length / size
    centres = (torch.arange(size, device=like.device, dtype=like.dtype) + 0.5) * scale
    pixels = torch.arange(length, device=like.device, dtype=like.dtype) + 0.5
    width: Any = torch.sym_max(scale, 1)  # exporters keep this maximum of a size that may vary
    weights = (1 - (pixels - centres[:, None]).abs() / width).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)
