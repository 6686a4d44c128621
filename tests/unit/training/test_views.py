"""Views change a picture as much as they say, and each picture in its own way."""

import torch

from anomalib_ccl.training.views import retaken


def disc(n: int) -> torch.Tensor:
    """Pictures of 96 × 128 pixels with one disc of radius 30 in the middle."""
    rows, columns = torch.meshgrid(torch.arange(96) - 47.5, torch.arange(128) - 63.5, indexing="ij")
    return ((rows**2 + columns**2).sqrt() < 30).float().expand(n, 3, 96, 128)


def test_a_retaken_disc_stays_a_disc_of_about_its_size_near_its_place() -> None:
    views = retaken(disc(50), torch.Generator().manual_seed(0))[:, 0]
    mass = views.sum(dim=(1, 2))
    rows = (views * torch.arange(96).view(-1, 1)).sum(dim=(1, 2)) / mass - 47.5
    columns = (views * torch.arange(128)).sum(dim=(1, 2)) / mass - 63.5
    # 2 % of the size, and a little more for a shift that is scaled and turned as well.
    assert 0.75 * 0.02 * 96 < rows.abs().max() < 1.1 * 0.02 * 96
    assert 0.75 * 0.02 * 128 < columns.abs().max() < 1.1 * 0.02 * 128
    sizes = mass / disc(1)[0, 0].sum()
    assert 1.03 < sizes.max() < 1.07
    assert 0.93 < sizes.min() < 0.97
    spread = (views * (torch.arange(96).view(-1, 1) - 47.5 - rows.view(-1, 1, 1)) ** 2).sum(dim=(1, 2))
    breadth = (views * (torch.arange(128) - 63.5 - columns.view(-1, 1, 1)) ** 2).sum(dim=(1, 2))
    torch.testing.assert_close(spread, breadth, rtol=0.03, atol=0)


def test_a_horizontal_edge_turns_by_up_to_three_degrees_on_a_picture_that_is_not_square() -> None:
    edge = (torch.arange(96) > 47).float().view(1, 1, 96, 1).expand(50, 3, 96, 128)
    heights = retaken(edge, torch.Generator().manual_seed(0))[:, 0].sum(dim=1)
    slopes = torch.rad2deg(torch.atan((heights[:, 104] - heights[:, 24]) / 80))
    assert 2.5 < slopes.abs().max() < 3.1


def test_no_pixel_of_a_retaken_picture_is_invented() -> None:
    plain = torch.full((4, 3, 32, 32), 0.7)
    torch.testing.assert_close(retaken(plain, torch.Generator().manual_seed(0)), plain)


def test_the_generator_alone_decides_and_each_picture_changes_in_its_own_way() -> None:
    before = torch.random.get_rng_state()
    first = retaken(disc(2), torch.Generator().manual_seed(0))
    assert first.equal(retaken(disc(2), torch.Generator().manual_seed(0)))
    assert not first[0].equal(first[1])
    assert torch.random.get_rng_state().equal(before)
