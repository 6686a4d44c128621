"""The pre-processor's exportable form does to an image what it does in the engine."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import CenterCrop, Compose, InterpolationMode, Normalize, Resize

from anomalib_ccl.export.pre_processor import ExactPreProcessor, resize

NORMALIZE = Normalize(mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])


@pytest.mark.parametrize("size", [(100, 80), (64, 96), (37, 511), (20, 31), (1, 1)])
def test_resize_is_that_of_torch_with_antialiasing(size):
    images = torch.rand(2, 3, *size)
    expected = F.interpolate(images, (64, 96), mode="bilinear", antialias=True)
    torch.testing.assert_close(resize(images, 64, 96), expected)


@pytest.mark.parametrize(
    "transform",
    [
        Compose([Resize((64, 96)), NORMALIZE]),
        Compose([Resize((64, 96), antialias=False), NORMALIZE]),
        Compose([Resize((64, 96), InterpolationMode.NEAREST), CenterCrop(32)]),
        Compose([NORMALIZE]),
        Resize((32, 32)),
        NORMALIZE,
        None,
    ],
    ids=repr,
)
def test_exported_form_does_what_the_engine_does(transform):
    images = torch.rand(2, 3, 130, 150)
    expected = transform(images) if transform else images
    torch.testing.assert_close(ExactPreProcessor(transform)(images), expected)
