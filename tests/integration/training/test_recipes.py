"""A recipe is the options that it names, and a checkpoint knows its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import (
    SMALL,
    assert_calibrated_for_its_weights,
    assert_same_state,
    ccl,
    data,
    engine,
    last_checkpoint,
)

from anomalib_ccl import CCL
from anomalib_ccl.errors import InputError
from anomalib_ccl.training.options import Research, chosen

Run = tuple[CCL, Path]
RECOMMENDED = {
    "skip": True,
    "anomaly_map": "refined",
    "global_weight": 0.1,
    "losses": "single_view",
    "schedule": "cosine",
}


@pytest.fixture(scope="module", params=["recommended", "memory"])
def run(request: pytest.FixtureRequest, sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder, model = tmp_path_factory.mktemp(request.param), ccl(recipe=request.param, memory=20)
    untrained = {name: value.clone() for name, value in model.model.named_parameters()}
    engine(folder, max_epochs=1).fit(model, datamodule=data(sample_root))
    moved = [name for name, value in model.model.named_parameters() if not torch.equal(value, untrained[name])]
    assert bool(moved) == (request.param == "recommended")
    return model, last_checkpoint(folder)


def test_a_recipe_is_the_options_that_it_names() -> None:
    plain, _ = chosen("paper", {})
    recommended, vectors = chosen("recommended", {})
    assert recommended == chosen("paper", RECOMMENDED)[0]
    assert vectors == 500
    assert (plain.local_weight, plain.global_weight, plain.skip, plain.anomaly_map) == (1, 1, False, "paper")
    model = CCL(**SMALL, recipe="recommended", research=Research(skip=False, global_weight=0.0), memory=7)
    assert not model.model.skip
    assert not model.loss.needs_view
    assert model.model.anomaly_map == "refined"
    assert model.model.memory.size == 7


def test_a_recipe_ends_with_a_model_that_is_calibrated_tested_and_predicts(
    run: Run, sample_root: Path, tmp_path: Path
) -> None:
    model, _ = run
    assert_calibrated_for_its_weights(model, data(sample_root))
    assert model.model.memory.vectors.shape[:2] == (2, 20)
    (figures,) = engine(tmp_path).test(model, datamodule=data(sample_root))
    assert figures["mean_image_AUROC"] > 0
    batches = engine(tmp_path).predict(model, data_path=sample_root / "brick/test")
    for batch in batches:
        assert batch.anomaly_map.isfinite().all()
        assert torch.equal(batch.pred_label.flatten(), batch.pred_score.flatten() > 0.5)
        assert set(batch.explanation) <= {"brick", "retina", "unknown"}


@pytest.mark.parametrize("way", ["load_from_checkpoint", "trainer"])
def test_a_checkpoint_knows_its_recipe(way: str, run: Run, sample_root: Path, tmp_path: Path) -> None:
    model, checkpoint = run
    if way == "trainer":
        loaded = CCL(visualizer=False)
        engine(tmp_path).predict(loaded, datamodule=data(sample_root), ckpt_path=checkpoint)
    else:
        loaded = CCL.load_from_checkpoint(checkpoint, visualizer=False)
    assert_same_state(loaded, model)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(loaded.eval()(images), model.eval()(images), strict=True):
            assert torch.equal(ours, theirs)
    name = model.hparams["recipe"]
    same = {"skip": name == "recommended", "noise_probability": 0.309}
    assert_same_state(CCL.load_from_checkpoint(checkpoint, research=same), model)
    for contradiction, message in (
        ({"recipe": "paper"}, f"was trained with recipe='{name}', not recipe='paper'"),
        ({"memory": 3}, "was trained with memory=20, not memory=3"),
    ):
        with pytest.raises(InputError, match=message):
            CCL.load_from_checkpoint(checkpoint, **contradiction)


@pytest.mark.parametrize("run", ["recommended"], indirect=True)
@pytest.mark.parametrize("given", [{}, {"research": {"global_weight": 0.5}}])
def test_a_training_that_goes_on_follows_the_recipe_of_its_checkpoint(
    given: dict[str, Any], run: Run, sample_root: Path, tmp_path: Path
) -> None:
    model = ccl(**given)
    engine(tmp_path, max_epochs=2, limit_val_batches=0).fit(model, data(sample_root), ckpt_path=run[1])
    assert model.loss.global_weight == (0.5 if given else 0.1)
    assert model.schedule == "cosine"
    assert_calibrated_for_its_weights(model, data(sample_root))


@pytest.mark.parametrize("run", ["memory"], indirect=True)
@pytest.mark.parametrize("given", [{}, {"recipe": "memory"}])
def test_a_memory_is_built_anew_when_its_training_goes_on(
    given: dict[str, Any], run: Run, sample_root: Path, tmp_path: Path
) -> None:
    earlier = torch.load(run[1], weights_only=True)
    earlier["state_dict"]["model.calibration.limits"] += 1
    torch.save(earlier, tmp_path / "earlier.ckpt")
    model, go_on = ccl(**given), engine(tmp_path, limit_val_batches=0)
    go_on.fit(model, data(sample_root), ckpt_path=tmp_path / "earlier.ckpt")
    assert go_on.trainer.current_epoch == 1
    assert_calibrated_for_its_weights(model, data(sample_root))
