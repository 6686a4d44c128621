"""Augmented views of a batch, made on the batch's device."""

from collections.abc import Sequence

import torch
from anomalib.data.transforms.utils import extract_transforms_by_type
from kornia import augmentation
from kornia.enhance import Denormalize, Normalize
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2 as transforms

from anomalib_ccl.model.reconstruction.recipe import View


class SecondView(nn.Module):
    """Augment normalised images, each with parameters of its own, as the paper's contrastive pairs need.

    Random resized crop, horizontal and vertical flip (0.5), colour jitter (0.4, 0.4, 0.4, 0.1), grey-scale (0.2),
    Gaussian blur (sigma 0.1 to 2), rotation; Fan et al., https://arxiv.org/abs/2412.04769. The colour operations need
    images in [0, 1], so the pre-processor's normalisation is undone first and done again at the end.

    Args:
        mean: Mean per channel that the images were normalised with.
        std: Standard deviation per channel that the images were normalised with.
        view: How far the view may differ from the image.

    Example:
        >>> view = SecondView(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> images = torch.rand(2, 3, 64, 64) * 2 - 1
        >>> view(images).shape
        torch.Size([2, 3, 64, 64])
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], view: View | None = None) -> None:
        super().__init__()
        self.denormalize = Denormalize(torch.tensor(mean), torch.tensor(std))
        self.normalize = Normalize(torch.tensor(mean), torch.tensor(std))
        self.view = view or View()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Make one second view of each image.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            Augmented, normalised images of the same shape, device and type.
        """
        with torch.autocast(images.device.type, enabled=False):
            augment = _augmentations(self.view, (images.shape[-2], images.shape[-1]))
            return self.normalize(augment(self.denormalize(images.float()))).to(images.dtype)


def second_view_for(pre_processor: nn.Module | None, view: View | None = None) -> SecondView:
    """Make second views that undo and redo a pre-processor's normalisation."""
    transform = getattr(pre_processor, "transform", None)
    found = extract_transforms_by_type(transform, transforms.Normalize)
    for normalize in found:
        if isinstance(normalize, transforms.Normalize):
            return SecondView(normalize.mean, normalize.std, view)
    return SecondView((0.0,) * 3, (1.0,) * 3, view)


def _augmentations(view: View, size: tuple[int, int]) -> nn.Module:
    # The blur reflects the image at its borders, so its kernel must fit into the image.
    largest = min(size) // 2 * 2 - 1
    low, high = (min(kernel, largest) for kernel in view.blur_kernels)
    kernel = low + 2 * int(torch.randint((high - low) // 2 + 1, ()))
    return augmentation.AugmentationSequential(
        augmentation.RandomResizedCrop(size, scale=view.scale),
        augmentation.RandomHorizontalFlip(p=0.5),
        augmentation.RandomVerticalFlip(p=0.5),
        augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1, p=1.0),
        augmentation.RandomGrayscale(p=0.2),
        augmentation.RandomGaussianBlur((kernel, kernel), sigma=(0.1, 2.0), p=1.0),
        augmentation.RandomRotation(view.rotation, p=1.0),
    )


def retaken(images: Tensor, numbers: Tensor) -> Tensor:
    """Show the same products as if photographed once more, from a little nearer: 95 to 99 % of the side, anywhere.

    A model scores the images that it was trained on lower than new ones, so limits set from them raise too many false
    alarms. Views that were turned and moved too needed pixels from outside the image; on textures their seams raised
    the limits, and fewer defects were found.

    Example:
        >>> retaken(torch.rand(2, 3, 64, 64), torch.arange(2)).shape
        torch.Size([2, 3, 64, 64])
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(int(numbers.max()) + 1, 3, generator=generator)[numbers.cpu()]
    nearer, right, down = drawn.unbind(dim=1)
    side = 0.99 - 0.04 * nearer
    # The grid spans 2, from -1 to 1, and a part of it must not leave it.
    right, down = ((1 - side) * (2 * place - 1) for place in (right, down))
    nothing = torch.zeros_like(side)
    matrix = torch.stack([side, nothing, right, nothing, side, down], dim=1).view(-1, 2, 3).to(images)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
