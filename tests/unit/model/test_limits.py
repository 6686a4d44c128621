"""A limit for a rate is exceeded by that share of new images, whatever the shape of the scores."""

import pytest
import torch
from scipy import stats
from torch import Tensor

from anomalib_ccl.model.limits import RATES, added_quantiles, limits_at, tail_quantiles

SHAPES = {
    "normal": stats.norm(10),
    "Gumbel": stats.gumbel_r(10),
    "gamma(4)": stats.gamma(4),
    "log-normal(0.5)": stats.lognorm(0.5),
    "t(3)": stats.t(3, 20),
}


def table(scores: Tensor) -> Tensor:
    """The table of one class."""
    return tail_quantiles(scores, torch.zeros(len(scores), dtype=torch.long))


def scores(n: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(SHAPES["gamma(4)"].rvs(n, random_state=seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("images", "rates", "factor"), [(50, (0.01, 0.05), 2), (100, (0.01, 0.05), 1.5), (500, (0.001, 0.01, 0.05), 2)]
)
def test_new_images_exceed_the_limit_at_the_rate_on_average(
    shape: str, images: int, rates: tuple[float, ...], factor: float
) -> None:
    distribution = SHAPES[shape]
    drawn = torch.from_numpy(distribution.rvs((300, images), random_state=images))
    tables = torch.stack([table(own)[0] for own in drawn])
    for rate in rates:
        exceeded = distribution.sf(limits_at(tables, rate).numpy()).mean()
        assert rate / factor < exceeded < rate * factor


def test_within_the_sample_a_limit_is_an_order_statistic() -> None:
    """The k-th largest of n scores is exceeded with probability k / (n + 1)."""
    drawn = scores(399)
    for k in (200, 100, 40, 20):
        expected = drawn.sort(descending=True).values[k - 1]
        assert limits_at(table(drawn), k / 400)[0].item() == pytest.approx(expected.item(), rel=0.05)


@pytest.mark.parametrize("n", [2, 20, 100, 500])
def test_limits_rise_as_rates_fall_beyond_the_highest_score(n: int) -> None:
    drawn = scores(n)
    (row, _) = table(drawn)
    assert (row.diff() >= 0).all()
    assert row[-1] > drawn.max()
    rates = [0.5, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-6]
    limits = torch.stack([limits_at(table(drawn), rate)[0] for rate in rates])
    assert (limits.diff() > 0).all()
    torch.testing.assert_close(row[[0, -1]], limits[[0, -2]])  # the ends of the grid


@pytest.mark.parametrize("n", [1, 7, 200])
def test_limits_scale_and_move_with_the_scores(n: int) -> None:
    drawn, labels = scores(3 * n), torch.arange(3 * n) % 3
    rows = tail_quantiles(drawn, labels)
    torch.testing.assert_close(tail_quantiles(1000 * drawn, labels), 1000 * rows)
    torch.testing.assert_close(tail_quantiles(drawn + 5, labels), rows + 5)


def test_few_images_of_a_class_borrow_its_spread_from_the_others() -> None:
    many, one = scores(400), torch.tensor([50.0], dtype=torch.float64)
    labels = torch.cat([torch.arange(400) % 4, torch.tensor([4])])
    rows = tail_quantiles(torch.cat([many, one]), labels)
    spread = limits_at(rows, 0.01) - limits_at(rows, 0.5)
    assert spread[4].item() == pytest.approx(spread[:4].mean().item(), rel=0.7)
    assert limits_at(rows, 0.5)[4] == 50
    added = added_quantiles(tail_quantiles(many, labels[:-1]), one, torch.tensor([0]))
    torch.testing.assert_close(added, rows[4:5], rtol=0.1, atol=0)


@pytest.mark.parametrize("value", [0.0, 3.0])
@pytest.mark.parametrize("n", [1, 2, 50])
def test_limits_of_equal_scores_are_finite_and_positive(n: int, value: float) -> None:
    rows = table(torch.full((n,), value))
    assert rows.shape == (2, len(RATES))
    assert rows.isfinite().all()
    torch.testing.assert_close(rows, torch.full_like(rows, max(value, 1e-6)))
