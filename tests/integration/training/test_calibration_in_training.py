"""Calibration in anomalib's engine: when it happens, what it stores, and what predictions tell from then on."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.data import PredictDataset
from anomalib.engine import Engine
from lightning import seed_everything

from anomalib_ccl import CCL, MultiCategory

CATEGORIES = ["brick", "grass", "gravel_coarse", "gravel_fine", "retina", "tissue"]


def fit(
    root: Path, folder: Path, epochs: int = 2, val_split_mode: str | None = None, **kwargs: Any
) -> tuple[CCL, Engine]:
    seed_everything(0)
    model = CCL("tf_efficientnet_lite0", image_size=(64, 64), visualizer=False, **kwargs)
    engine = Engine(
        max_epochs=epochs,
        default_root_dir=folder,
        accelerator="cpu",
        enable_progress_bar=False,
    )
    data = MultiCategory(root=root, train_batch_size=8, num_workers=0, val_split_mode=val_split_mode)
    engine.fit(model, datamodule=data)
    return model, engine


@pytest.fixture(scope="module")
def trained(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[CCL, Engine]:
    return fit(sample_root, tmp_path_factory.mktemp("trained"), epochs=12)


def test_training_ends_with_a_prototype_and_a_limit_for_each_class(trained: tuple[CCL, Engine]) -> None:
    model, _ = trained
    calibration = model.model.calibration
    assert model.classes.names == CATEGORIES
    assert calibration.prototypes.shape[0] == len(calibration.location) == len(calibration.scale) == len(CATEGORIES)
    assert {"prototypes", "location", "scale", "novelty_threshold"} <= dict(calibration.named_buffers()).keys()


def test_thresholds_are_set_on_calibrated_scores(trained: tuple[CCL, Engine]) -> None:
    model, engine = trained
    model.eval()
    with torch.no_grad():
        scores = torch.cat(
            [
                model.model(model.pre_processor.transform(batch.image)).pred_score
                for batch in engine.trainer.datamodule.val_dataloader()
            ]
        )
    assert model.post_processor.image_max.item() == pytest.approx(scores.max().item(), rel=1e-4)
    assert model.post_processor.image_min.item() == pytest.approx(scores.min().item(), rel=1e-4)


def test_checkpoint_keeps_calibration_and_class_names(trained: tuple[CCL, Engine]) -> None:
    model, engine = trained
    loaded = CCL.load_from_checkpoint(engine.best_model_path, visualizer=False)
    assert loaded.classes.names == CATEGORIES
    expected = dict(model.model.calibration.named_buffers())
    for name, buffer in loaded.model.calibration.named_buffers():
        assert torch.equal(buffer, expected[name]), name


def test_checkpoint_from_before_calibration_loads_and_scores_without_it(
    trained: tuple[CCL, Engine], tmp_path: Path
) -> None:
    _, engine = trained
    checkpoint = torch.load(engine.best_model_path, weights_only=True)
    checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if "calibration" not in k}
    del checkpoint["training_classes"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    loaded = CCL.load_from_checkpoint(tmp_path / "old.ckpt", visualizer=False).eval()
    assert not loaded.model.calibration.is_calibrated
    assert loaded(torch.rand(1, 3, 64, 64)).pred_score.isfinite().all()


def test_prediction_on_flat_images_names_the_product(
    trained: tuple[CCL, Engine], sample_root: Path, tmp_path: Path
) -> None:
    model, _ = trained
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
    named = {}
    for category in ("brick", "retina", "tissue"):
        dataset = PredictDataset(sorted((sample_root / category / "train/good").iterdir())[0])
        (batch,) = engine.predict(model, dataset=dataset)
        named[category] = batch.explanation
    assert named == {category: [category] for category in named}


def test_prediction_of_an_image_beyond_the_border_is_unknown(trained: tuple[CCL, Engine]) -> None:
    model, _ = trained
    network = deepcopy(model.eval().model)
    noise = model.pre_processor.transform(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    for border, unknown in ((0.0, True), (2.0, False)):
        network.calibration.novelty_threshold.fill_(border)
        prediction = network.classify(noise)
        assert (prediction.class_index.item() == len(CATEGORIES)) is unknown
        assert prediction.score.isfinite().all()


def test_without_validation_the_model_is_calibrated_all_the_same(sample_root: Path, tmp_path: Path) -> None:
    _, engine = fit(sample_root, tmp_path, val_split_mode="none")
    assert CCL.load_from_checkpoint(engine.best_model_path).model.calibration.is_calibrated


def test_calibration_can_be_switched_off(sample_root: Path, tmp_path: Path) -> None:
    model, _ = fit(sample_root, tmp_path, calibrate=False)
    assert not model.model.calibration.is_calibrated


@pytest.fixture(scope="module")
def trained_for_rate(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    _, engine = fit(sample_root, tmp_path_factory.mktemp("rate"), val_split_mode="none", false_alarm_rate=0.1)
    return engine.best_model_path


def predict(root: Path, folder: Path, checkpoint: str, **kwargs: Any) -> tuple[CCL, torch.Tensor, torch.Tensor]:
    """A new model that predicts from a checkpoint, as anomalib's command makes it, and its scores and labels."""
    model = CCL("tf_efficientnet_lite0", image_size=(64, 64), visualizer=False, **kwargs)
    engine = Engine(default_root_dir=folder, accelerator="cpu", enable_progress_bar=False)
    (*batches,) = engine.predict(model, data_path=root / "brick/test", ckpt_path=checkpoint)
    return model, *(torch.cat([getattr(b, name).flatten() for b in batches]) for name in ("pred_score", "pred_label"))


def test_checkpoint_of_a_false_alarm_rate_predicts_by_it_unasked(
    trained_for_rate: str, sample_root: Path, tmp_path: Path
) -> None:
    model, score, label = predict(sample_root, tmp_path, trained_for_rate)
    _, expected_score, expected_label = predict(sample_root, tmp_path, trained_for_rate, false_alarm_rate=0.1)
    assert model.model.calibration.false_alarm_rate == 0.1
    torch.testing.assert_close(score, expected_score)
    assert torch.equal(label, expected_label)
    assert label.any()


@pytest.mark.parametrize("validated", [False, True], ids=["trained for another rate", "trained for none"])
def test_false_alarm_rate_can_be_given_to_any_checkpoint(
    trained_for_rate: str, trained: tuple[CCL, Engine], validated: bool, sample_root: Path, tmp_path: Path
) -> None:
    checkpoint = trained[1].best_model_path if validated else trained_for_rate
    scores = []
    for rate in (0.01, 0.5):
        model, score, label = predict(sample_root, tmp_path, checkpoint, false_alarm_rate=rate)
        assert model.post_processor.image_threshold == 1
        assert torch.equal(label, score > 0.5)
        scores.append(score)
    assert (scores[0] <= scores[1]).all()
    assert not torch.equal(*scores)


def test_false_alarm_rate_sets_the_threshold_from_normal_images_alone(
    trained_for_rate: str, sample_root: Path, tmp_path: Path
) -> None:
    loaded = CCL.load_from_checkpoint(trained_for_rate, visualizer=False).eval()
    (*batches,) = Engine(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False).predict(
        loaded, data_path=sample_root / "brick/test"
    )
    for batch in batches:
        calibrated = loaded.model.classify(batch.image).score
        assert torch.equal(batch.pred_label.flatten(), calibrated.flatten() > 1)
        torch.testing.assert_close(batch.pred_score.flatten(), (calibrated.flatten() / 2).clamp(max=1))


def test_false_alarm_rate_needs_calibration() -> None:
    with pytest.raises(ValueError, match=r"false_alarm_rate=0\.1 needs calibrate=True"):
        CCL("resnet18", pre_trained=False, calibrate=False, false_alarm_rate=0.1)
