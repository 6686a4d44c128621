import numpy as np
import pytest
import torch
from anomalib.metrics.aupro import _AUPRO
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from anomalib_ccl.metrics.category import FIGURES, CategoryMetrics
from anomalib_ccl.metrics.pixel import PixelMetrics, sortable
from anomalib_ccl.metrics.ranking import ranking_metrics

SIDE = 64


def random_masks(images: int, generator: torch.Generator) -> Tensor:
    """Blobs of all shapes, many of which touch at a corner only, on every second image."""
    smooth = F.avg_pool2d(torch.randn(images, 1, SIDE, SIDE, generator=generator), 5, 1, 2)[:, 0]
    mask = smooth > 0.3
    mask[::2] = False
    return mask


def random_maps(kind: str, mask: Tensor, generator: torch.Generator) -> Tensor:
    normal = torch.randn(mask.shape, generator=generator) + 1.5 * mask
    uniform = torch.rand(mask.shape, generator=generator)
    return {
        "normal": normal,
        "uniform": 0.8 * uniform + 0.2 * mask,
        "unrelated": uniform,
        "tied": normal.round(),
        "two values": (normal > 1).float(),
        "all equal": torch.full(mask.shape, 0.25),
        "offset": normal + 1000,
        "negative offset": 0.01 * normal - 50,
        "tiny": 1e-9 * normal.exp(),
        "huge": 1e9 * normal,
        "with zeros": normal.relu(),
        "with infinities": normal.masked_fill(normal > 4, torch.inf).masked_fill(normal < -3, -torch.inf),
    }[kind]


def reference(anomaly_map: Tensor, mask: Tensor) -> dict[str, float]:
    # Infinities have a rank but neither scikit-learn nor anomalib takes them.
    anomaly_map = anomaly_map.clamp(-1e30, 1e30)
    labels, scores = mask.flatten().numpy(), anomaly_map.flatten().numpy()
    precision, recall, _ = precision_recall_curve(labels, scores)
    aupro = _AUPRO()
    aupro.update(anomaly_map, mask.int())
    return {
        "AUROC": roc_auc_score(labels, scores),
        "AP": average_precision_score(labels, scores),
        "F1Max": (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max(),
        "AUPRO": aupro.compute().item(),
    }


KINDS = ["normal", "uniform", "unrelated", "tied", "two values", "all equal", "offset", "negative offset", "tiny"]


@pytest.mark.parametrize("kind", [*KINDS, "huge", "with zeros", "with infinities"])
def test_figures_agree_with_scikit_learn_and_anomalib(kind):
    generator = torch.Generator().manual_seed(1)
    mask = random_masks(48, generator)
    anomaly_map = random_maps(kind, mask, generator)
    metrics = PixelMetrics()
    for part in torch.arange(48).split(7):
        metrics.update(anomaly_map[part, None], mask[part, None].to(torch.uint8))
    assert metrics.compute() == pytest.approx(reference(anomaly_map, mask), abs=1e-3)


def test_scores_of_later_batches_may_lie_far_outside_those_of_earlier_ones():
    generator = torch.Generator().manual_seed(2)
    mask = random_masks(24, generator)
    factor = torch.logspace(-6, 6, 24)[torch.randperm(24, generator=generator)]
    anomaly_map = factor[:, None, None] * random_maps("normal", mask, generator)
    metrics = PixelMetrics()
    for image in range(24):
        metrics.update(anomaly_map[image : image + 1], mask[image : image + 1])
    assert metrics.compute() == pytest.approx(reference(anomaly_map, mask), abs=1e-3)


@pytest.mark.parametrize("kind", ["normal", "tied", "offset"])
def test_two_processes_together_count_what_one_would(kind):
    generator = torch.Generator().manual_seed(4)
    mask = random_masks(16, generator)
    anomaly_map = random_maps(kind, mask, generator)
    anomaly_map[1::2] *= 2  # so that the bins of the two are not the same
    first, second = PixelMetrics(), PixelMetrics()
    first.update(anomaly_map[::2], mask[::2])
    second.update(anomaly_map[1::2], mask[1::2])
    first.merge_state(second)
    assert first.compute() == pytest.approx(reference(anomaly_map, mask), abs=1e-3)


def test_masks_of_a_whole_image_are_regions_and_batches_of_nothing_change_nothing():
    metrics, mask = PixelMetrics(), torch.zeros(2, 8, 8)
    mask[0] = mask[1, :4, :4] = 1
    anomaly_map = torch.zeros(2, 8, 8)
    anomaly_map[1] = mask[1]
    metrics.update(anomaly_map, mask)
    before = metrics.compute()
    # One region is found at once, the other, at half of the limit on average, in 0.15 of its pixels.
    assert before["AUPRO"] == pytest.approx(0.5 + 0.15 / 2)
    metrics.update(anomaly_map[:0], mask[:0])
    assert metrics.compute() == before


def test_state_does_not_grow_with_the_images():
    generator = torch.Generator().manual_seed(5)
    metrics = PixelMetrics()

    def size() -> int:
        return sum(state.nbytes for state in metrics.metric_state.values())

    before = size()
    for _ in range(20):
        mask = random_masks(4, generator)
        metrics.update(random_maps("normal", mask, generator), mask)
    assert size() == before < 5 * 2**20


def test_sortable_keeps_the_order_of_all_floats():
    scores = torch.randn(10_000, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    scores = (scores.sign() * 10 ** (8 * scores)).float()
    keys = sortable(scores[scores.argsort()])
    assert (keys.diff() >= 0).all()
    assert len(keys.unique()) == len(scores[scores.abs() > 2**-40].unique()) + 1


@pytest.mark.parametrize(
    ("score", "anomaly_map", "message"),
    [
        (torch.tensor([0.5]), torch.full((1, 4, 4), torch.nan), "anomaly map: 16 of 16 values are NaN"),
        (torch.tensor([0.5]), torch.zeros(1, 8, 8), r"\[8, 8\] pixels for a mask of \[4, 4\];"),
        (torch.tensor([torch.nan]), torch.zeros(1, 4, 4), "image scores: 1 of 1 values are NaN or infinite"),
        (torch.tensor([torch.inf]), torch.zeros(1, 4, 4), "image scores: 1 of 1 values are NaN or infinite"),
    ],
)
def test_scores_that_cannot_be_counted_are_refused(score, anomaly_map, message):
    with pytest.raises(ValueError, match=message):
        CategoryMetrics(["bottle"], [0]).update(torch.tensor([0]), score, anomaly_map, torch.zeros(1, 4, 4))


def test_ranking_has_the_best_f1_score_and_weights_stand_for_repeated_scores():
    generator = np.random.default_rng(10)
    labels, weights = generator.integers(0, 2, 50), generator.integers(0, 4, 50)
    scores = (generator.normal(size=50) + labels).round(1)
    best = max(f1_score(labels, scores >= threshold) for threshold in scores)
    assert ranking_metrics(labels, scores)["F1Max"] == pytest.approx(best)
    repeated = ranking_metrics(labels.repeat(weights), scores.repeat(weights))
    assert ranking_metrics(labels, scores, weights) == pytest.approx(repeated)
    assert np.isnan(list(ranking_metrics(labels, scores, weights * labels).values())).all()


def random_predictions() -> tuple[list[str], Tensor, Tensor, Tensor, Tensor]:
    """48 images of three categories; ``cable`` has no defective one."""
    generator = torch.Generator().manual_seed(12)
    categories = ["bottle", "cable", "wood"] * 16
    mask = random_masks(48, generator)
    mask[1::3] = False
    labels = mask.flatten(1).any(dim=1).long()
    score = torch.randn(48, generator=generator) + labels
    return categories, labels, score, random_maps("normal", mask, generator), mask


def test_category_figures_are_those_of_the_images_of_that_category():
    categories, labels, score, anomaly_map, mask = random_predictions()
    metrics = CategoryMetrics(categories, labels.tolist())
    for part in torch.randperm(48, generator=torch.Generator().manual_seed(13)).split(10):
        metrics.update(part, score[part], anomaly_map[part], mask[part])
    report = metrics.compute()
    assert report["category"].tolist() == ["bottle", "cable", "wood"]
    assert report["normal_images"].tolist() == [8, 16, 8]
    assert report["anomalous_images"].tolist() == [8, 0, 8]
    for row, start in ((0, 0), (2, 2)):
        pixels = reference(anomaly_map[start::3], mask[start::3])
        images = ranking_metrics(labels[start::3], score[start::3])
        no_verdict_and_class = [float("nan")] * 3
        expected = [*images.values(), *pixels.values(), *no_verdict_and_class]
        assert report.loc[row, list(FIGURES)].tolist() == pytest.approx(expected, abs=1e-3, nan_ok=True)
        assert report.loc[row, "image_AUROC"] == roc_auc_score(labels[start::3], score[start::3])
    assert report.loc[1, list(FIGURES)].isna().all()


def test_class_accuracy_is_known_if_any_category_was_recognised():
    metrics = CategoryMetrics(["bottle", "bottle", "cable", "wood"], [0, 1, 0, 0])
    metrics.update(torch.tensor([0, 1, 2]), torch.zeros(3), classes=["bottle", "unknown", "bottle"])
    assert metrics.compute()["class_accuracy"].tolist() == pytest.approx([0.5, 0, np.nan], nan_ok=True)


def test_false_alarms_and_missed_are_shares_of_the_verdicts():
    metrics = CategoryMetrics([*["bottle"] * 5, "cable", "wood"], [0, 0, 0, 1, 1, 0, 1])
    metrics.update(torch.tensor([4, 0, 1]), verdict=torch.tensor([[False], [True], [False]]))
    metrics.update(torch.tensor([2, 3, 5]), verdict=torch.tensor([0.0, 1.0, 1.0]))
    metrics.update(torch.tensor([6]), torch.zeros(1))  # without a verdict
    report = metrics.compute()
    assert report["false_alarms"].tolist() == pytest.approx([1 / 3, 1, np.nan], nan_ok=True)
    assert report["missed"].tolist() == pytest.approx([0.5, np.nan, np.nan], nan_ok=True)
    assert report["normal_images"].tolist() == [3, 1, 0]
    assert report["image_AUROC"].isna().all()  # there are no scores, though there are verdicts


def test_two_processes_report_what_one_would():
    categories, labels, score, anomaly_map, mask = random_predictions()
    one, *two = (CategoryMetrics(categories, labels.tolist()) for _ in range(3))
    named = [f"{name}" if number % 5 else "unknown" for number, name in enumerate(categories)]
    for metrics, start, step in ((one, 0, 1), (two[0], 0, 2), (two[1], 1, 2)):
        part = torch.arange(start, 48, step)
        metrics.update(part, score[part], anomaly_map[part], mask[part], score[part] > 0.5, named[start::step])
    two[0].merge_state(two[1])
    for state in ("score", "seen", "verdict", "recognised"):
        assert torch.equal(getattr(two[0], state), getattr(one, state))


def test_categories_without_maps_or_masks_have_image_figures_only():
    categories, labels, score, anomaly_map, mask = random_predictions()
    for maps in ((None, mask), (anomaly_map, None)):
        metrics = CategoryMetrics(categories, labels.tolist())
        metrics.update(torch.arange(48), score[:, None], *maps)
        report = metrics.compute()
        assert report["image_AUROC"].notna().tolist() == [True, False, True]
        assert report.filter(like="pixel").isna().all(axis=None)
