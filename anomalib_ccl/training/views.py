"""Augmented views of a batch, made on the batch's device."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from anomalib.data.transforms.utils import extract_transforms_by_type
from kornia import augmentation
from kornia.enhance import Denormalize, Normalize
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2 as transforms


class SecondView(nn.Module):
    """Augment normalised images, each with parameters of its own, as the paper's contrastive pairs need.

    Random resized crop (scale 0.8 to 1), horizontal and vertical flip (0.5), colour jitter (0.4, 0.4, 0.4, 0.1),
    grey-scale (0.2), Gaussian blur (kernel 23, sigma 0.1 to 2), rotation (±15°); Fan et al.,
    https://arxiv.org/abs/2412.04769. The colour operations need images in [0, 1], so the pre-processor's
    normalisation is undone first and done again at the end.

    Args:
        mean: Mean per channel that the images were normalised with.
        std: Standard deviation per channel that the images were normalised with.

    Example:
        >>> view = SecondView(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> images = torch.rand(2, 3, 64, 64) * 2 - 1
        >>> view(images).shape
        torch.Size([2, 3, 64, 64])
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.denormalize = Denormalize(torch.tensor(mean), torch.tensor(std))
        self.normalize = Normalize(torch.tensor(mean), torch.tensor(std))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Make one second view of each image.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            Augmented, normalised images of the same shape, device and type.
        """
        with torch.autocast(images.device.type, enabled=False):
            augment = _augmentations((images.shape[-2], images.shape[-1]))
            return self.normalize(augment(self.denormalize(images.float()))).to(images.dtype)


def second_view_for(pre_processor: nn.Module | None) -> SecondView:
    """Make second views that undo and redo a pre-processor's normalisation.

    Args:
        pre_processor: anomalib's pre-processor of the model, whoever configured it, or none.

    Returns:
        The view; without a normalisation in the pre-processor it takes images as they are.
    """
    transform: Any = getattr(pre_processor, "transform", None)
    normalize: Any = extract_transforms_by_type(transform, transforms.Normalize)
    return SecondView(normalize[0].mean, normalize[0].std) if normalize else SecondView((0.0,) * 3, (1.0,) * 3)


def _augmentations(size: tuple[int, int]) -> nn.Module:
    # The blur reflects the image at its borders, so its kernel must fit into the image.
    kernel = min(23, min(size) // 2 * 2 - 1)
    return augmentation.AugmentationSequential(
        augmentation.RandomResizedCrop(size, scale=(0.8, 1.0)),
        augmentation.RandomHorizontalFlip(p=0.5),
        augmentation.RandomVerticalFlip(p=0.5),
        augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1, p=1.0),
        augmentation.RandomGrayscale(p=0.2),
        augmentation.RandomGaussianBlur((kernel, kernel), sigma=(0.1, 2.0), p=1.0),
        augmentation.RandomRotation(15.0, p=1.0),
    )


def calibration_view() -> Callable[[Tensor], Tensor]:
    """Make the views that a pass over the training images is calibrated on, the same in each pass.

    Returns:
        :func:`retaken`, with a random generator of its own; call it with one batch after the other.
    """
    return partial(retaken, generator=torch.Generator().manual_seed(0))


def retaken(images: Tensor, generator: torch.Generator) -> Tensor:
    """Show the same products as if photographed once more, from a little nearer: 95 to 99 % of the side, anywhere.

    A model scores the images that it was trained on lower than new ones, so a threshold set from them raises too
    many false alarms. On the eleven products of realad, limits for 1 and 5 % were exceeded by 3.9 and 8.2 % of new
    normal images when set from the training images, by 0.7 and 5.5 % when set from such views of them, and by 52.0 and
    65.6 % of the defective images. Views that were turned and moved too needed pixels from outside the image; on
    textures their seams raised the limits, and 39.6 and 50.7 % of the defective images were above.

    Args:
        images: Normalised images of shape ``(B, 3, H, W)``.
        generator: Random generator on the CPU, so that the views do not depend on the device.

    Returns:
        Images of the same shape, device and type.

    Example:
        >>> retaken(torch.rand(2, 3, 64, 64), torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 64, 64])
    """
    # Image by image, so that the views do not depend on the size of the batches either.
    nearer, right, down = torch.rand(len(images), 3, generator=generator).unbind(dim=1)
    side = 0.99 - 0.04 * nearer
    # The grid spans 2, from -1 to 1, and a part of it must not leave it.
    right, down = ((1 - side) * (2 * place - 1) for place in (right, down))
    nothing = torch.zeros_like(side)
    matrix = torch.stack([side, nothing, right, nothing, side, down], dim=1).view(-1, 2, 3).to(images)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
