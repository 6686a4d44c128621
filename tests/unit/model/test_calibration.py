"""One threshold fits all classes, unknown products are found, and classes come and go without touching the others."""

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor

from anomalib_ccl.errors import InputError
from anomalib_ccl.model.calibration import ClassCalibration
from anomalib_ccl.model.limits import limits_at, tail_quantiles

LEVELS = torch.tensor([1.0, 3.0, 10.0, 30.0])
SPREADS = torch.tensor([0.05, 0.6, 0.5, 2.0])
THREE = [0, 1, 2]


def products(classes: list[int], n: int, seed: int = 0, scatter: float = 0.2) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, scores and labels, from 0, of n normal images of each of some of four unlike products."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(classes)).repeat_interleave(n)
    which = torch.tensor(classes)[labels]
    embeddings = torch.eye(4, 8)[which] * 5 + scatter * torch.randn(len(which), 8, generator=generator)
    scores = LEVELS[which] + SPREADS[which] * torch.randn(len(which), generator=generator)
    return embeddings, scores, labels


def fitted(classes: list[int] = THREE, n: int = 200, rate: float = 0.05) -> ClassCalibration:
    calibration = ClassCalibration(rate)
    calibration.fit(*products(classes, n))
    return calibration


def scored(calibration: ClassCalibration, embeddings: Tensor, scores: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Calibrate scores, and maps of 4 × 6 pixels that rise up to them, and recognise the classes."""
    ramp = torch.linspace(0, 1, 24).view(1, 1, 4, 6)
    index = calibration.recognise(embeddings)
    return calibration(ramp * scores.view(-1, 1, 1, 1), scores.view(-1, 1), index), index


def assert_same(calibration: ClassCalibration, other: ClassCalibration) -> None:
    for name, buffer in calibration.named_buffers():
        assert torch.equal(buffer, other.get_buffer(name)), name


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_each_class_exceeds_one_at_the_false_alarm_rate_on_new_images(rate: float) -> None:
    embeddings, scores, labels = products(THREE, 20_000, seed=1)
    alarms = scored(fitted(n=4000, rate=rate), embeddings, scores)[0][1][:, 0] > 1
    for c in THREE:
        assert alarms[labels == c].float().mean().item() == pytest.approx(rate, rel=0.35)
    # The control: one threshold on raw scores alarms for one product only.
    alarms = scores > scores.quantile(1 - rate)
    assert [alarms[labels == c].any().item() for c in THREE] == [False, False, True]


@pytest.mark.parametrize(("scatter", "which"), [(0.2, 1), (1.0, 0)])
def test_prototypes_and_novelty_thresholds_are_their_formulas_in_numpy(scatter: float, which: int) -> None:
    embeddings, scores, labels = products(THREE, 20, scatter=scatter)
    calibration = ClassCalibration(0.05)
    calibration.fit(embeddings, scores, labels)
    unit = embeddings.numpy() / np.linalg.norm(embeddings.numpy(), axis=1, keepdims=True)
    means = np.stack([unit[labels == c].mean(axis=0) for c in THREE])
    prototypes = means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(calibration.prototypes, prototypes, rtol=1e-5, atol=1e-6)
    distances = np.log(1 - (unit * prototypes[labels]).sum(axis=1))
    medians = np.array([np.median(distances[labels == c]) for c in THREE])
    low, high = np.percentile(distances - medians[labels], [100 * NormalDist().cdf(z) for z in (-1, 1)])
    apart = 1 - prototypes @ prototypes.T + 9 * np.eye(3)
    both = np.stack([np.exp(medians + 2 * (high - low)), apart.min(axis=1) / 4])
    expected = both.max(axis=0)
    assert (both.argmax(axis=0) == which).all()
    assert calibration.novelty_threshold.tolist() == pytest.approx(expected, rel=1e-3)
    assert torch.equal(calibration.quantiles, tail_quantiles(scores, labels))
    assert torch.equal(calibration.limits, limits_at(calibration.quantiles, 0.05))


def test_order_within_a_class_and_the_maximum_of_the_map_are_kept() -> None:
    embeddings, scores, labels = products(THREE, 50, seed=2)
    (anomaly_map, score), index = scored(fitted(), embeddings, scores)
    assert index.equal(labels)
    torch.testing.assert_close(anomaly_map.amax(dim=(-2, -1)), score)
    for c in THREE:
        assert score[labels == c, 0].argsort().equal(scores[labels == c].argsort())


def test_a_product_far_from_all_is_unknown_and_has_the_limit_of_all_images() -> None:
    calibration, (_, scores, _) = fitted(), products(THREE, 200)
    (_, calibrated), index = scored(calibration, torch.eye(8)[7:], torch.tensor([7.0]))
    assert index.tolist() == [3]
    limit = np.quantile(scores, 0.95)
    assert calibrated.item() == pytest.approx(7 / limit, rel=0.02)


def test_products_that_vary_more_than_others_hide_no_unknown_one() -> None:
    narrow, wide = products([0], 100, scatter=0.05), products([1], 100, scatter=0.8)
    calibration = ClassCalibration()
    calibration.fit(*(torch.cat(both) for both in zip(narrow[:2], wide[:2], strict=True)), torch.arange(200) // 100)
    assert (calibration.recognise(products([2], 100, scatter=0.05)[0]) == 2).all()
    assert (calibration.recognise(products([0], 100, seed=1, scatter=0.05)[0]) == 0).float().mean() > 0.95
    assert (calibration.recognise(products([1], 100, seed=1, scatter=0.8)[0]) == 1).float().mean() > 0.95


@pytest.mark.parametrize("score", [0.0, 2.0])
@pytest.mark.parametrize("n", [1, 3])
def test_scores_are_finite_when_all_images_of_a_class_are_identical(n: int, score: float) -> None:
    calibration = ClassCalibration()
    calibration.fit(torch.ones(n, 8), torch.full((n,), score), torch.zeros(n, dtype=torch.long))
    (anomaly_map, calibrated), index = scored(calibration, torch.ones(2, 8), torch.tensor([0.0, 4.0]))
    assert index.tolist() == [0, 0]
    assert anomaly_map.isfinite().all()
    assert calibrated[0] == 0
    assert calibrated[1].isfinite()
    assert calibrated[1] > 1


def test_identical_training_images_know_a_slightly_different_one_and_no_other_product() -> None:
    calibration = ClassCalibration()
    calibration.fit(torch.eye(2)[[0, 0, 0]], torch.ones(3), torch.zeros(3, dtype=torch.long))
    angles = torch.deg2rad(torch.tensor([5.0, 30.0]))
    assert calibration.recognise(torch.stack([angles.cos(), angles.sin()], dim=1)).tolist() == [0, 1]


def test_another_rate_needs_no_images() -> None:
    calibration = fitted(rate=0.05)
    calibration.false_alarm_rate = 0.2
    assert_same(calibration, fitted(rate=0.2))
    loaded = ClassCalibration(0.2)  # a model's own rate wins over that of the state
    loaded.load_state_dict(fitted(rate=0.05).state_dict())
    assert_same(loaded, calibration)


def test_a_state_loads_into_a_module_of_any_number_of_classes() -> None:
    for classes in ([], [0], THREE):
        module = fitted(classes) if classes else ClassCalibration(0.05)
        module.load_state_dict(fitted().state_dict())
        assert_same(module, fitted())
        module.load_state_dict(ClassCalibration().state_dict())
        assert not module.is_calibrated
    state = fitted().state_dict()
    del state["quantiles"]
    with pytest.raises(RuntimeError, match="quantiles"):
        ClassCalibration().load_state_dict(state)


def test_fit_in_inference_mode_leaves_a_module_that_can_be_loaded_into() -> None:
    calibration = ClassCalibration(0.05)
    with torch.inference_mode():
        calibration.fit(*products(THREE, 20))
    calibration.load_state_dict(fitted(n=30).state_dict())
    assert_same(calibration, fitted(n=30))


def test_half_precision_is_taken_and_computed_with_in_single_precision() -> None:
    embeddings, scores, labels = products(THREE, 50, seed=3)
    calibration = ClassCalibration()
    calibration.fit(embeddings.bfloat16(), scores.bfloat16(), labels)
    assert all(buffer.dtype == torch.float32 for buffer in calibration.buffers())
    assert calibration.recognise(embeddings.bfloat16()).equal(labels)
    near, images = fitted(n=50), torch.eye(4, 8)[[0, 1, 2]] + 0.05 * torch.eye(8)[[5, 6, 7]]
    for scale in (0.5, 0.99, 1.01, 2.0):
        near.novelty_threshold = scale * (1 - torch.nn.functional.cosine_similarity(images, near.prototypes))
        with torch.autocast("cpu", torch.bfloat16):
            assert near.recognise(images).equal(torch.arange(3) if scale > 1 else torch.full((3,), 3))


@pytest.mark.parametrize("known", [[0], THREE])
def test_added_classes_leave_the_known_ones_to_the_bit_and_have_limits_of_their_own(known: list[int]) -> None:
    calibration, before = fitted(known), fitted(known)
    calibration.add(*products([3], 500, seed=2))
    for name, buffer in before.named_buffers():
        assert torch.equal(calibration.get_buffer(name)[: len(known)], buffer[: len(known)]), name
    for name in ("quantiles", "limits", "levels"):  # those of unknown products
        assert torch.equal(calibration.get_buffer(name)[-1], before.get_buffer(name)[-1])
    (_, score), index = scored(calibration, *products([3], 4000, seed=3)[:2])
    assert (index == len(known)).all()
    assert (score > 1).float().mean().item() == pytest.approx(0.05, rel=0.4)


def test_one_by_one_or_at_once_added_classes_get_nearly_the_limits_of_a_fit() -> None:
    expected = fitted([0, 1, 2, 3]).limits[2:-1]
    one_by_one, at_once = fitted([0, 1]), fitted([0, 1])
    embeddings, scores, labels = products([0, 1, 2, 3], 200)
    at_once.add(embeddings[labels > 1], scores[labels > 1], labels[labels > 1] - 2)
    for c in (2, 3):
        one_by_one.add(embeddings[labels == c], scores[labels == c], torch.zeros(200, dtype=torch.long))
    for calibration in (one_by_one, at_once):
        torch.testing.assert_close(calibration.limits[2:-1], expected, rtol=0.02, atol=0)


def test_a_product_whose_images_lie_far_apart_is_recognised_and_makes_no_other_one_known() -> None:
    calibration = fitted()
    before = calibration.novelty_threshold.clone()
    calibration.add(*products([3], 200, seed=2, scatter=1.5))
    assert torch.equal(calibration.novelty_threshold[:3], before)
    assert calibration.novelty_threshold[3] > 2 * before.max()
    assert (calibration.recognise(products([3], 200, seed=4, scatter=1.5)[0]) == 3).float().mean() > 0.97
    # Between the thresholds, from a product that was known before.
    between = torch.eye(4, 8)[0] + torch.eye(8)[7] * torch.sqrt((1 - 1.5 * before[0]) ** -2 - 1)
    assert calibration.recognise(between[None]).tolist() == [4]


@pytest.mark.parametrize("added", [False, True])
def test_a_removed_class_leaves_the_others_to_the_bit(added: bool) -> None:
    calibration = fitted()
    if added:
        calibration.add(*products([3], 20, seed=2))
    kept = [0, *range(2, len(calibration.prototypes))]
    images = products(kept, 50, seed=1)[:2]
    (_, score), index = scored(calibration, *images)
    calibration.remove(1)
    (_, again), again_index = scored(calibration, *images)
    assert torch.equal(again, score)
    assert [kept[i] for i in again_index] == index.tolist()
    assert (calibration.recognise(products([1], 50)[0]) == len(kept)).all()


@pytest.mark.parametrize(
    ("act", "complaint"),
    [
        (lambda: ClassCalibration(0), r"false_alarm_rate must lie in \(0, 0.5\], got 0"),
        (lambda: setattr(ClassCalibration(), "false_alarm_rate", 0.6), r"must lie in \(0, 0.5\], got 0.6"),
        (lambda: ClassCalibration().fit(torch.ones(2, 8), torch.ones(2), torch.tensor([0, 2])), "none of class 1"),
        (lambda: ClassCalibration().fit(*(x[:0] for x in products([0], 1))), "0 images and none of any class"),
        (lambda: fitted([0]).remove(0), "the last class cannot be removed"),
        (lambda: ClassCalibration().remove(0), "the model is not calibrated, so no class can be added or removed"),
        (lambda: ClassCalibration().add(*products([0], 2)), "the model is not calibrated, so no class can be added"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_in_one_sentence(act: Callable[[], object], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        act()
