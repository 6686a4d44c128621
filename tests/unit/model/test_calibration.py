"""One threshold fits all classes, unknown products are found, and no score is ever NaN."""

from collections import OrderedDict
from pathlib import Path
from statistics import NormalDist

import numpy as np
import onnxruntime
import openvino
import pandas as pd
import pytest
import torch
from torch import Tensor

from anomalib_ccl.metrics.category import CategoryMetrics
from anomalib_ccl.model.calibration import Calibrated, ClassCalibration

LEVELS = torch.tensor([1.0, 3.0, 10.0])
SPREADS = torch.tensor([0.05, 0.6, 0.5])


def products(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, scores and labels of n normal images of each of three products, unlike in level and spread."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat_interleave(n)
    embeddings = torch.eye(3, 8)[labels] * 5 + 0.2 * torch.randn(3 * n, 8, generator=generator)
    scores = LEVELS[labels] + SPREADS[labels] * torch.randn(3 * n, generator=generator)
    return embeddings, scores, labels


def fitted(n: int = 200, false_alarm_rate: float = 0.05) -> ClassCalibration:
    calibration = ClassCalibration(false_alarm_rate)
    calibration.fit(*products(n))
    return calibration


def calibrate(calibration: ClassCalibration, embeddings: Tensor, scores: Tensor) -> Calibrated:
    """Calibrate scores, and maps of 4 × 6 pixels that rise up to them."""
    ramp = torch.linspace(0, 1, 24).view(1, 1, 4, 6)
    return calibration(embeddings, ramp * scores.view(-1, 1, 1, 1), scores.view(-1, 1))


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_each_class_exceeds_one_at_the_false_alarm_rate_on_new_images(rate: float) -> None:
    embeddings, scores, labels = products(4000, seed=1)
    alarms = calibrate(fitted(1000, rate), embeddings, scores).score[:, 0] > 1
    for c in range(3):
        assert alarms[labels == c].float().mean().item() == pytest.approx(rate, rel=0.35)


def test_raw_scores_have_no_threshold_that_calibrated_ones_have() -> None:
    # The control of the test above: one threshold on raw scores alarms for one product only.
    _, scores, labels = products(4000, seed=1)
    alarms = scores > scores.quantile(0.95)
    assert [alarms[labels == c].float().mean().item() > 0 for c in range(3)] == [False, False, True]


def statistics(values: Tensor) -> np.ndarray:
    """Median and half the middle 68 %, the slow way."""
    low, median, high = np.percentile(values.numpy(), [100 * NormalDist().cdf(z) for z in (-1, 0, 1)])
    return np.array([median, (high - low) / 2])


def test_statistics_agree_with_a_formula_in_numpy() -> None:
    embeddings, scores, labels = products(20)
    calibration = fitted(20)
    own = np.array([statistics(scores[labels == c]) for c in range(3)])
    location, scale = statistics(scores)
    within = statistics(scores - torch.tensor(own[labels, 0]))[1]
    between = np.mean((own[labels, 0] - location) ** 2)
    drawn = within**2 / (within**2 + 20 * between)
    for c in range(3):
        assert calibration.location[c].item() == pytest.approx(drawn * location + (1 - drawn) * own[c, 0], rel=1e-5)
        assert calibration.scale[c].item() == pytest.approx((20 * own[c, 1] + 5 * within) / 25, rel=1e-5)
        unit = embeddings[labels == c] / embeddings[labels == c].norm(dim=1, keepdim=True)
        torch.testing.assert_close(calibration.prototypes[c], unit.mean(0) / unit.mean(0).norm())
    assert [calibration.global_location, calibration.global_scale] == pytest.approx([location, scale], rel=1e-5)


def test_a_tenth_of_outliers_hardly_moves_a_limit() -> None:
    embeddings, scores, labels = products(200)
    spoiled = scores.clone()
    spoiled[labels == 0] = torch.where(torch.arange(200) % 10 == 0, 100.0, scores[labels == 0])
    calibration = ClassCalibration()
    calibration.fit(embeddings, spoiled, labels)
    before = calibrate(fitted(), embeddings, scores).score[labels == 0]
    after = calibrate(calibration, embeddings, scores).score[labels == 0]
    torch.testing.assert_close(after, before, rtol=0.05, atol=0)


def test_order_within_a_class_and_the_maximum_of_the_map_are_kept() -> None:
    embeddings, scores, labels = products(50, seed=2)
    calibrated = calibrate(fitted(), embeddings, scores)
    torch.testing.assert_close(calibrated.anomaly_map.amax(dim=(-2, -1)), calibrated.score)
    for c in range(3):
        assert calibrated.score[labels == c, 0].argsort().equal(scores[labels == c].argsort())


def test_figures_of_each_category_are_unchanged_where_its_images_are_recognised() -> None:
    embeddings, scores, labels = products(20, seed=4)
    generator = torch.Generator().manual_seed(4)
    anomalous = torch.arange(60) % 2
    masks = torch.zeros(60, 16, 16, dtype=torch.bool)
    masks[anomalous == 1, 4:8, 4:8] = True
    maps = scores.view(-1, 1, 1, 1) * torch.rand(60, 1, 16, 16, generator=generator) * (1 + 0.3 * masks[:, None])
    scores = maps.amax(dim=(2, 3))
    calibrated = fitted()(embeddings, maps, scores)
    assert calibrated.class_index.equal(labels)
    reports = []
    for score, anomaly_map in ((scores, maps), (calibrated.score, calibrated.anomaly_map)):
        metrics = CategoryMetrics([f"product {c}" for c in labels.tolist()], anomalous.tolist())
        metrics.update(torch.arange(60), score, anomaly_map, masks)
        reports.append(metrics.compute())
    pd.testing.assert_frame_equal(*reports, atol=1e-3, rtol=0)
    assert reports[0][["image_AUROC", "image_AP", "pixel_AUPRO"]].mean().lt(0.95).all()  # not trivially the same


def test_classes_are_recognised_and_a_product_far_from_all_is_unknown() -> None:
    embeddings, scores, labels = products(50, seed=3)
    assert calibrate(fitted(), embeddings, scores).class_index.equal(labels)
    stranger = torch.eye(8)[7:]
    assert calibrate(fitted(), stranger, scores[:1]).class_index.tolist() == [3]


def test_an_unknown_product_is_scored_with_the_statistics_of_all_images() -> None:
    calibration = fitted()
    _, scores, _ = products(200)
    location, scale = statistics(scores)
    limit = location + NormalDist().inv_cdf(0.95) * scale
    score = calibrate(calibration, torch.eye(8)[7:], torch.tensor([7.0])).score
    assert score.item() == pytest.approx(7 / limit, rel=1e-5)


@pytest.mark.parametrize("score", [0.0, 2.0])
@pytest.mark.parametrize("n", [1, 3])
def test_scores_are_finite_when_all_images_of_a_class_are_identical(n: int, score: float) -> None:
    calibration = ClassCalibration()
    calibration.fit(torch.ones(n, 8), torch.full((n,), score), torch.zeros(n, dtype=torch.long))
    calibrated = calibrate(calibration, torch.ones(2, 8), torch.tensor([0.0, 4.0]))
    assert calibrated.class_index.tolist() == [0, 0]
    assert calibrated.anomaly_map.isfinite().all()
    assert calibrated.score[0] == 0
    assert calibrated.score[1].isfinite()
    assert calibrated.score[1] > 1


def test_identical_training_images_know_a_slightly_different_one_and_no_other_product() -> None:
    calibration = ClassCalibration()
    calibration.fit(torch.eye(2)[[0, 0, 0]], torch.ones(3), torch.zeros(3, dtype=torch.long))
    angles = torch.deg2rad(torch.tensor([5.0, 30.0]))
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert calibrate(calibration, embeddings, torch.ones(2)).class_index.tolist() == [0, 1]


@pytest.mark.parametrize("gap", [0.0, 0.2, 5.0])
def test_the_limit_of_a_class_of_one_image_is_nearer_than_that_of_its_image_alone(gap: float) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.arange(4).repeat_interleave(50), torch.tensor([4])])
    errors, errors_alone = [], []
    for _ in range(50):
        levels = 10 + gap * torch.randn(5, generator=generator)
        scores = levels[labels] + 0.2 * torch.randn(201, generator=generator)
        calibration = ClassCalibration()
        calibration.fit(torch.eye(5)[labels], scores, labels)
        limit = 1 / calibrate(calibration, torch.eye(5)[4:], torch.ones(1)).score.item()
        target = levels[4].item() + NormalDist().inv_cdf(0.95) * 0.2
        errors.append(abs(limit - target))
        errors_alone.append(abs(scores[-1].item() - target))
    assert np.mean(errors) < 0.8 * np.mean(errors_alone)


def test_before_fit_scores_pass_unchanged_and_there_is_no_class() -> None:
    embeddings, scores, _ = products(2)
    calibrated = calibrate(ClassCalibration(), embeddings, scores)
    assert calibrated.score[:, 0].equal(scores)
    assert calibrated.class_index.tolist() == [0] * 6


def test_a_state_loads_into_a_module_of_any_number_of_classes() -> None:
    embeddings, scores, _ = products(10, seed=4)
    two = ClassCalibration()
    two.fit(torch.eye(2), torch.tensor([1.0, 2.0]), torch.tensor([0, 1]))
    for module in (ClassCalibration(), two):
        module.load_state_dict(fitted().state_dict())
        for loaded, expected in zip(
            calibrate(module, embeddings, scores), calibrate(fitted(), embeddings, scores), strict=True
        ):
            assert loaded.equal(expected)


def test_a_state_that_was_not_calibrated_resets_a_calibrated_module() -> None:
    calibration = fitted()
    calibration.load_state_dict(ClassCalibration().state_dict())
    assert not calibration.is_calibrated


def test_a_state_from_before_calibration_loads_as_not_calibrated() -> None:
    parent = torch.nn.ModuleDict({"layer": torch.nn.Linear(2, 2), "calibration": fitted()})
    old = OrderedDict((name, value) for name, value in parent.state_dict().items() if name.startswith("layer"))
    parent.load_state_dict(old)
    assert not parent["calibration"].is_calibrated
    assert list(old) == ["layer.weight", "layer.bias"]


def test_a_state_that_lacks_one_buffer_is_refused() -> None:
    state = fitted().state_dict()
    del state["location"]
    with pytest.raises(RuntimeError, match="location"):
        ClassCalibration().load_state_dict(state)


def test_fit_in_inference_mode_leaves_a_module_that_can_be_loaded_into() -> None:
    calibration = ClassCalibration()
    with torch.inference_mode():
        calibration.fit(*products(20))
    calibration.load_state_dict(fitted(20).state_dict())
    assert calibration.location.equal(fitted(20).location)


def test_half_precision_is_taken_and_computed_with_in_single_precision() -> None:
    embeddings, scores, labels = products(50, seed=3)
    calibration = ClassCalibration()
    calibration.fit(embeddings.bfloat16(), scores.bfloat16(), labels)
    assert all(buffer.dtype == torch.float32 for buffer in calibration.buffers())
    assert calibrate(calibration, embeddings.bfloat16(), scores).class_index.equal(labels)


@pytest.mark.parametrize("rate", [0, -0.1, 0.6, 5])
def test_a_false_alarm_rate_out_of_range_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=rf"false_alarm_rate must lie in \(0, 0.5\], got {rate}"):
        ClassCalibration(rate)


@pytest.mark.parametrize(("labels", "complaint"), [([0, 2], "none of class 1"), ([], "0 images and none of any class")])
def test_a_class_without_images_is_named(labels: list[int], complaint: str) -> None:
    n = len(labels)
    with pytest.raises(ValueError, match=complaint):
        ClassCalibration().fit(torch.ones(n, 8), torch.ones(n), torch.tensor(labels, dtype=torch.long))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "calibration.onnx"
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        fitted(),
        (torch.ones(2, 8), torch.ones(2, 1, 4, 6), torch.ones(2, 1)),
        path,
        input_names=["embedding", "map", "score"],
        dynamic_shapes=({0: batch}, {0: batch}, {0: batch}),
        dynamo=True,
        verbose=False,
    )
    return path


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_exported_graph_agrees(exported: Path, runtime: str) -> None:
    embeddings, scores, _ = products(2, seed=5)
    embeddings = torch.cat([embeddings, torch.eye(8)[7:]])
    maps = torch.rand(7, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    inputs = [embeddings.numpy(), maps.numpy(), torch.cat([scores, torch.ones(1)]).view(-1, 1).numpy()]
    if runtime == "onnx":
        session = onnxruntime.InferenceSession(exported)
        found = session.run(None, dict(zip([i.name for i in session.get_inputs()], inputs, strict=True)))
    else:
        model = openvino.compile_model(exported, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = list(model(inputs).values())
    for ours, theirs in zip(fitted()(*map(torch.tensor, inputs)), found, strict=True):
        np.testing.assert_allclose(theirs, ours.numpy(), rtol=1e-5)
    assert found[2].tolist() == [0, 0, 1, 1, 2, 2, 3]


def edges() -> Tensor:
    """What the maps of normal images of three products look like: each has its own bright quarter."""
    maps = torch.full((3, 1, 32, 32), 0.5)
    maps[0, :, :16, :16], maps[1, :, :16, 16:], maps[2, :, 16:, :16] = 2.5, 3.5, 4.5
    return maps


def test_seven_tenths_of_what_is_usual_of_a_class_are_taken_off_its_maps_and_what_is_not_stays() -> None:
    calibration = fitted()
    embeddings = torch.eye(3, 8)
    assert calibration.unusual(embeddings, edges()).equal(edges())
    calibration.learn_usual(calibration.in_blocks(edges()))
    rest = calibration.unusual(embeddings, edges())
    for i, (rows, columns) in enumerate(
        [(slice(12), slice(12)), (slice(12), slice(20, 32)), (slice(20, 32), slice(12))]
    ):
        # Inside its bright quarter, because the interpolation softens the borders between blocks.
        left = rest[i, :, rows, columns]
        torch.testing.assert_close(left, torch.full_like(left, 0.5 + 0.3 * (2 + i)))
    torch.testing.assert_close(rest[..., 20:, 20:], torch.full((3, 1, 12, 12), 0.5))
    defect = torch.zeros_like(edges())
    defect[..., 4:8, 4:8] = 3
    torch.testing.assert_close(calibration.unusual(embeddings, edges() + defect) - rest, defect)
    another = calibration.unusual(embeddings.roll(1, dims=0), edges())
    torch.testing.assert_close(another.amax(dim=(1, 2, 3)), torch.tensor([2.5, 3.5, 4.5]))


def test_what_is_usual_of_an_unknown_product_is_the_mean_of_all_classes() -> None:
    calibration = fitted()
    calibration.learn_usual(calibration.in_blocks(edges()))
    unknown = -torch.ones(1, 8)
    assert calibration.recognise(unknown).tolist() == [3]
    rest = calibration.unusual(unknown, torch.full((1, 1, 32, 32), 5.0))
    torch.testing.assert_close(rest[0, 0, :12, :12], torch.full((12, 12), 5 - 0.7 * 2 / 3))
    torch.testing.assert_close(rest[0, 0, 20:, 20:], torch.full((12, 12), 5.0))


def test_a_map_is_never_negative_where_less_than_usual_is_found() -> None:
    calibration = fitted()
    calibration.learn_usual(calibration.in_blocks(edges()))
    assert calibration.unusual(torch.eye(3, 8), torch.zeros(3, 1, 32, 32)).min() == 0


def test_what_is_usual_is_saved_and_forgotten_with_the_calibration() -> None:
    calibration = fitted()
    calibration.learn_usual(calibration.in_blocks(edges()))
    loaded = ClassCalibration()
    loaded.load_state_dict(calibration.state_dict())
    assert loaded.usual.equal(calibration.usual)
    assert loaded.usual.shape == (3, 1, 4, 4)
    older = {name: value for name, value in calibration.state_dict().items() if name != "usual"}
    loaded.load_state_dict(older)
    assert loaded.is_calibrated
    assert len(loaded.usual) == 0
    calibration.reset()
    assert len(calibration.usual) == 0
