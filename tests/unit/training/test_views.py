"""Views change a picture as much as they say, and each picture in its own way."""

import pytest
import torch
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_ccl.training.views import SecondView, retaken, second_view_for


def disc(n: int) -> torch.Tensor:
    """Pictures of 96 × 128 pixels with one disc of radius 30 in the middle."""
    rows, columns = torch.meshgrid(torch.arange(96) - 47.5, torch.arange(128) - 63.5, indexing="ij")
    return ((rows**2 + columns**2).sqrt() < 30).float().expand(n, 3, 96, 128)


def test_a_retaken_disc_stays_a_disc_a_little_larger_near_its_place() -> None:
    views = retaken(disc(50), torch.arange(50))[:, 0]
    mass = views.sum(dim=(1, 2))
    rows = (views * torch.arange(96).view(-1, 1)).sum(dim=(1, 2)) / mass - 47.5
    columns = (views * torch.arange(128)).sum(dim=(1, 2)) / mass - 63.5
    # 5 % that are left out on one side alone move the middle by 2.6 %.
    assert 0.75 * 0.026 * 96 < rows.abs().max() < 0.027 * 96
    assert 0.75 * 0.026 * 128 < columns.abs().max() < 0.027 * 128
    sizes = mass / disc(1)[0, 0].sum()
    assert 1.09 < sizes.max() < 1 / 0.95**2 + 0.01
    assert 1 / 0.99**2 - 0.01 < sizes.min() < 1.04
    spread = (views * (torch.arange(96).view(-1, 1) - 47.5 - rows.view(-1, 1, 1)) ** 2).sum(dim=(1, 2))
    breadth = (views * (torch.arange(128) - 63.5 - columns.view(-1, 1, 1)) ** 2).sum(dim=(1, 2))
    torch.testing.assert_close(spread, breadth, rtol=0.03, atol=0)


def test_a_retaken_picture_shows_nothing_from_outside_the_picture() -> None:
    columns = torch.arange(128.0).view(1, 1, 1, 128).expand(50, 3, 96, 128)
    steps = retaken(columns, torch.arange(50)).diff(dim=-1)
    # At an edge that is repeated, or mirrored, there would be steps of 0, or backwards.
    assert steps[..., 1:-1].min() > 0.94
    assert steps.min() > 0.4
    assert steps.max() < 1


def test_no_pixel_of_a_retaken_picture_is_invented() -> None:
    plain = torch.full((4, 3, 32, 32), 0.7)
    torch.testing.assert_close(retaken(plain, torch.arange(4)), plain)


def test_the_number_of_a_picture_alone_decides_whatever_batch_it_is_in() -> None:
    before = torch.random.get_rng_state()
    several = retaken(disc(3), torch.tensor([4, 9, 2]))
    assert several[1:2].equal(retaken(disc(1), torch.tensor([9])))
    assert not several[0].equal(several[1])
    assert torch.random.get_rng_state().equal(before)


def test_second_view_draws_its_parameters_per_image() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 3, 64, 64)
    views = SecondView(mean=(0.5,) * 3, std=(0.5,) * 3)(image.repeat(6, 1, 1, 1))
    assert len({tuple(v.flatten()[::97].tolist()) for v in views}) == 6


def test_second_view_keeps_the_range_of_normalised_images() -> None:
    torch.manual_seed(0)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    low, high = (0 - mean) / std, (1 - mean) / std
    images = low[:, None, None] + torch.rand(8, 3, 64, 64) * (high - low)[:, None, None]
    views = SecondView(mean.tolist(), std.tolist())(images)
    for channel in range(3):
        assert views[:, channel].min() >= low[channel] - 1e-4
        assert views[:, channel].max() <= high[channel] + 1e-4


@pytest.mark.parametrize("size", [(32, 64), (256, 256)])
def test_second_view_has_the_shape_and_type_of_the_images(size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size).bfloat16()
    views = SecondView(mean=(0.5,) * 3, std=(0.5,) * 3)(images)
    assert views.shape == images.shape
    assert views.dtype == images.dtype


def test_second_view_undoes_the_normalisation_of_the_pre_processor_and_redoes_it() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    for transform, expected in (
        (Compose([Resize(8), Normalize(mean, std)]), (mean, std)),
        (Resize(8), ((0,) * 3, (1,) * 3)),
    ):
        view = second_view_for(PreProcessor(transform))
        assert torch.equal(view.normalize.mean, torch.tensor(expected[0], dtype=torch.float32))
        assert torch.equal(view.normalize.std, torch.tensor(expected[1], dtype=torch.float32))
