"""Views change a picture as much as they say, and each picture in its own way."""

import torch

from anomalib_ccl.training.views import retaken


def disc(n: int) -> torch.Tensor:
    """Pictures of 96 × 128 pixels with one disc of radius 30 in the middle."""
    rows, columns = torch.meshgrid(torch.arange(96) - 47.5, torch.arange(128) - 63.5, indexing="ij")
    return ((rows**2 + columns**2).sqrt() < 30).float().expand(n, 3, 96, 128)


def test_a_retaken_disc_stays_a_disc_a_little_larger_near_its_place() -> None:
    views = retaken(disc(50), torch.Generator().manual_seed(0))[:, 0]
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
    steps = retaken(columns, torch.Generator().manual_seed(0)).diff(dim=-1)
    # At an edge that is repeated, or mirrored, there would be steps of 0, or backwards.
    assert steps[..., 1:-1].min() > 0.94
    assert steps.min() > 0.4
    assert steps.max() < 1


def test_no_pixel_of_a_retaken_picture_is_invented() -> None:
    plain = torch.full((4, 3, 32, 32), 0.7)
    torch.testing.assert_close(retaken(plain, torch.Generator().manual_seed(0)), plain)


def test_the_generator_alone_decides_and_each_picture_changes_in_its_own_way() -> None:
    before = torch.random.get_rng_state()
    first = retaken(disc(2), torch.Generator().manual_seed(0))
    assert first.equal(retaken(disc(2), torch.Generator().manual_seed(0)))
    assert not first[0].equal(first[1])
    assert torch.random.get_rng_state().equal(before)
