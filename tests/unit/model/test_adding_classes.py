"""Classes that come and go leave all others as they were, to the bit."""

import pytest
import torch
from torch import Tensor

from anomalib_ccl.model.calibration import ClassCalibration

LEVELS = torch.tensor([1.0, 3.0, 10.0, 30.0])
SPREADS = torch.tensor([0.05, 0.6, 0.5, 2.0])


def products(classes: list[int], n: int, seed: int = 0, scatter: float = 0.2) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, scores and labels, counted from 0, of n normal images of each of some of four products."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(classes)).repeat_interleave(n)
    which = torch.tensor(classes)[labels]
    embeddings = torch.eye(4, 8)[which] * 5 + scatter * torch.randn(len(which), 8, generator=generator)
    scores = LEVELS[which] + SPREADS[which] * torch.randn(len(which), generator=generator)
    return embeddings, scores, labels


def fitted(classes: list[int], n: int = 200) -> ClassCalibration:
    calibration = ClassCalibration()
    calibration.fit(*products(classes, n))
    return calibration


def scored(calibration: ClassCalibration, embeddings: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    calibrated = calibration(embeddings, scores.view(-1, 1, 1, 1), scores.view(-1, 1))
    return calibrated.score.flatten(), calibrated.class_index


@pytest.mark.parametrize("known", [[0], [0, 1, 2]])
def test_added_classes_leave_scores_and_limits_of_the_known_ones_to_the_bit(known: list[int]) -> None:
    calibration = fitted(known)
    images = products(known, 50, seed=1)[:2]
    before, limits = scored(calibration, *images), calibration.limits()
    calibration.add(*products([3], 20, seed=2))
    for old, new in zip(before, scored(calibration, *images), strict=True):
        assert torch.equal(old, new)
    assert torch.equal(calibration.limits()[: len(known)], limits[:-1])
    assert torch.equal(calibration.limits()[-1], limits[-1])  # that of unknown products


@pytest.mark.parametrize("known", [[0], [0, 1, 2]])
def test_an_added_class_is_recognised_and_exceeds_its_limit_at_the_rate(known: list[int]) -> None:
    calibration = fitted(known)
    calibration.add(*products([3], 500, seed=2))
    score, index = scored(calibration, *products([3], 4000, seed=3)[:2])
    assert (index == len(known)).all()
    assert (score > 1).float().mean().item() == pytest.approx(0.05, rel=0.4)


def test_one_by_one_or_at_once_classes_get_nearly_the_limits_of_a_fit() -> None:
    expected = fitted([0, 1, 2, 3]).limits()[2:-1]
    one_by_one, at_once = fitted([0, 1]), fitted([0, 1])
    embeddings, scores, labels = products([0, 1, 2, 3], 200)
    at_once.add(embeddings[labels > 1], scores[labels > 1], labels[labels > 1] - 2)
    for c in (2, 3):
        one_by_one.add(embeddings[labels == c], scores[labels == c], torch.zeros(200, dtype=torch.long))
    for calibration in (one_by_one, at_once):
        torch.testing.assert_close(calibration.limits()[2:-1], expected, rtol=0.02, atol=0)


def test_one_image_of_a_product_unlike_the_others_keeps_its_own_level() -> None:
    calibration = fitted([0, 1, 2])
    calibration.add(torch.eye(4, 8)[3:], torch.tensor([30.0]), torch.tensor([0]))
    assert calibration.location[-1].item() == pytest.approx(30, rel=0.02)
    assert calibration.scale[-1] > 0


def test_a_product_whose_images_lie_far_apart_is_recognised_and_makes_no_other_one_known() -> None:
    calibration = fitted([0, 1, 2])
    before = calibration.novelty_threshold
    calibration.add(*products([3], 200, seed=2, scatter=1.5))
    assert torch.equal(calibration.novelty_threshold[:3], before.expand(3))
    assert calibration.novelty_threshold[3] > 2 * before
    embeddings, scores, _ = products([3], 200, seed=4, scatter=1.5)
    assert (scored(calibration, embeddings, scores)[1] == 3).float().mean() > 0.97
    # Between the thresholds, from a product that was known before.
    beside = torch.eye(4, 8)[0] + torch.eye(8)[7] * torch.sqrt((1 - 1.5 * before) ** -2 - 1)
    assert scored(calibration, beside[None], torch.ones(1))[1].tolist() == [4]


@pytest.mark.parametrize("added", [False, True])
def test_a_removed_class_leaves_the_others_to_the_bit(added: bool) -> None:
    calibration = fitted([0, 1, 2])
    if added:
        calibration.add(*products([3], 20, seed=2))
    kept = [0, *range(2, len(calibration.prototypes))]
    images = products(kept, 50, seed=1)[:2]
    score, index = scored(calibration, *images)
    calibration.remove(1)
    again, again_index = scored(calibration, *images)
    assert torch.equal(again, score)
    assert [kept[i] for i in again_index] == index.tolist()
    assert (scored(calibration, *products([1], 50)[:2])[1] == len(kept)).all()


def test_the_last_class_stays_and_nothing_is_added_to_nothing() -> None:
    calibration = fitted([0])
    with pytest.raises(ValueError, match="the last class cannot be removed"):
        calibration.remove(0)
    assert len(calibration.prototypes) == 1
    for change in (lambda: ClassCalibration().remove(0), lambda: ClassCalibration().add(*products([0], 2))):
        with pytest.raises(ValueError, match="nothing is calibrated"):
            change()


def test_an_added_class_is_kept_in_a_state() -> None:
    calibration, loaded = fitted([0, 1]), ClassCalibration()
    calibration.add(*products([3], 20))
    loaded.load_state_dict(calibration.state_dict())
    images = products([0, 1, 3], 5)[:2]
    for ours, theirs in zip(scored(calibration, *images), scored(loaded, *images), strict=True):
        assert torch.equal(ours, theirs)
