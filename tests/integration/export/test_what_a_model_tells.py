"""What a calibrated model tells of an image: its product, and whether its score is above the limit of that."""

from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.callbacks import TilerConfigurationCallback
from anomalib.data import PredictDataset
from trainings import ccl, data, engine

from anomalib_ccl import CCL
from anomalib_ccl.errors import InputError
from anomalib_ccl.model.limits import limits_at


def predicted(root: Path, folder: Path, checkpoint: Path, **arguments: Any) -> tuple[CCL, torch.Tensor, torch.Tensor]:
    """A model that predicts from a checkpoint, as anomalib's command makes it, and its scores and labels."""
    model = CCL("test_efficientnet", image_size=(64, 64), visualizer=False, **arguments)
    (*batches,) = engine(folder).predict(model, data_path=root / "brick", ckpt_path=checkpoint)
    return model, *(torch.cat([getattr(b, name).flatten() for b in batches]) for name in ("pred_score", "pred_label"))


def test_a_training_ends_with_a_prototype_and_limits_for_each_class(
    trained_ccl: Path, product_names: list[str]
) -> None:
    model = CCL.load_from_checkpoint(trained_ccl)
    calibration = model.model.calibration
    assert model.class_names == product_names
    assert len(calibration.prototypes) == len(product_names) == len(calibration.limits) - 1
    assert torch.equal(calibration.limits, limits_at(calibration.quantiles, 0.01))
    assert (calibration.limits > 0).all()


def test_predictions_of_flat_images_name_the_product_or_call_it_unknown(
    trained_ccl: Path, pictures: Path, product_names: list[str], tmp_path: Path
) -> None:
    model = CCL.load_from_checkpoint(trained_ccl, visualizer=False)
    batches = engine(tmp_path).predict(model, dataset=PredictDataset(pictures))
    assert [name for batch in batches for name in batch.explanation] == [*product_names, "unknown"]


@torch.no_grad()
def test_a_known_product_need_not_be_recognised(trained_ccl: Path, pictures: Path) -> None:
    model = CCL.load_from_checkpoint(trained_ccl).eval()
    images = torch.stack([item.image for item in PredictDataset(pictures)])
    found = model(images)
    assert found.class_index.tolist() == [0, 1, 2, 3]
    given = model(images, torch.tensor([-1, 2, -1, 0]))
    assert given.class_index.tolist() == [0, 2, 2, 0]
    assert torch.equal(given.raw_score, found.raw_score)  # there is no memory to look into
    limits = model.model.calibration.limits[given.class_index]
    torch.testing.assert_close(given.pred_score[:, 0], (given.raw_score[:, 0] / limits / 2).clamp(max=1))
    assert torch.equal(given.pred_label, given.raw_score > limits[:, None])


def test_the_limit_is_the_threshold_whatever_a_validation_shows(
    trained_ccl: Path, products: Path, tmp_path: Path
) -> None:
    model = CCL.load_from_checkpoint(trained_ccl, visualizer=False)
    before = {name: value.clone() for name, value in model.post_processor.named_buffers()}
    engine(tmp_path).validate(model, datamodule=data(products, model.class_names))
    for name, value in model.post_processor.named_buffers():
        torch.testing.assert_close(value, before[name], equal_nan=True)
    assert (model.post_processor.image_threshold, model.post_processor.normalized_image_threshold) == (1, 0.5)


@pytest.mark.parametrize("post_processor", [False, True])
def test_without_a_post_processor_scores_are_tested_and_predicted_and_there_are_no_verdicts(
    post_processor: bool, sample_root: Path, pictures: Path, tmp_path: Path
) -> None:
    run, model = engine(tmp_path, max_epochs=1), ccl(recipe="memory", memory=20, post_processor=False)
    (figures,) = run.train(model, datamodule=data(sample_root))
    assert 0 <= figures["image_AUROC"] == figures["image_AUROC"]
    assert "image_F1Score" not in figures
    again = ccl(recipe="memory", memory=20, post_processor=post_processor)
    (tested,) = engine(tmp_path).test(again, datamodule=data(sample_root), ckpt_path=run.best_model_path)
    assert tested["image_AUROC"] == pytest.approx(figures["image_AUROC"])
    for batch in engine(tmp_path).predict(again, dataset=PredictDataset(pictures), ckpt_path=run.best_model_path):
        assert batch.pred_label is None
        assert (batch.pred_score > 0).all()


@pytest.mark.parametrize("given", [{"precision": "16-true"}, {"precision": "64-true"}, {"tiler": 32}, {"half": True}])
def test_what_a_model_cannot_compute_in_or_with_is_refused_in_a_test_and_a_prediction(
    given: dict[str, Any], trained_ccl: Path, products: Path, pictures: Path, tmp_path: Path
) -> None:
    callbacks = [TilerConfigurationCallback(enable=True, tile_size=32)] if "tiler" in given else []
    run = engine(tmp_path, *callbacks, precision=given.get("precision", "32-true"))
    model = CCL.load_from_checkpoint(trained_ccl, visualizer=False)
    model.half() if "half" in given else None
    with pytest.raises(InputError, match=r"CCL computes in|CCL's own tiles"):
        run.test(model, datamodule=data(products, model.class_names))
    with pytest.raises(InputError, match=r"CCL computes in|CCL's own tiles"):
        run.predict(model, dataset=PredictDataset(pictures))


def test_another_rate_can_be_given_to_any_checkpoint(trained_ccl: Path, products: Path, tmp_path: Path) -> None:
    own, score, _ = predicted(products, tmp_path, trained_ccl)
    assert own.model.calibration.false_alarm_rate == own.hparams["false_alarm_rate"] == 0.01
    scores = [score]
    for rate in (0.1, 0.5):
        model, score, label = predicted(products, tmp_path, trained_ccl, false_alarm_rate=rate)
        assert model.model.calibration.false_alarm_rate == rate
        assert torch.equal(label, score > 0.5)
        assert (score >= scores[-1]).all()
        scores.append(score)
    assert label.any()
    assert CCL.load_from_checkpoint(trained_ccl, false_alarm_rate=0.5).model.calibration.false_alarm_rate == 0.5
    with pytest.raises(InputError, match=r"false_alarm_rate must lie in \(0, 0.5\], got 2"):
        CCL.load_from_checkpoint(trained_ccl, false_alarm_rate=2)
