"""Trainings that go on from an earlier one, on the same products or on others."""

import logging
from pathlib import Path

import pandas as pd
import pytest
import torch
from trainings import Steps, assert_calibrated_for_its_weights, assert_same_state, ccl, data, engine, last_checkpoint

from anomalib_ccl import CCL
from anomalib_ccl.errors import InputError

BEFORE, NOW = ["brick", "retina"], ["brick", "grass", "tissue"]


@pytest.fixture(scope="module")
def checkpoint(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two epochs on the products of before."""
    folder = tmp_path_factory.mktemp("before")
    engine(folder, max_epochs=2, limit_val_batches=0).fit(ccl(), datamodule=data(sample_root, BEFORE))
    return last_checkpoint(folder)


@pytest.mark.parametrize("way", ["checkpoint", "model in memory"])
def test_training_on_other_products_starts_from_the_weights_and_finds_all_else_anew(
    way: str, checkpoint: Path, sample_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps, images = Steps(), data(sample_root, NOW)
    model = ccl() if way == "checkpoint" else CCL.load_from_checkpoint(checkpoint, visualizer=False)
    given = {"ckpt_path": checkpoint} if way == "checkpoint" else {}
    with caplog.at_level(logging.WARNING, "anomalib_ccl"):
        engine(tmp_path, steps, max_epochs=1, limit_val_batches=0).fit(model, datamodule=images, **given)
    (warning,) = (message for message in caplog.messages if "other products" in message)
    assert "(added: grass, tissue; gone: retina)" in warning
    assert steps.epochs == [0] * 5
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name, _ in model.model.named_parameters():
        assert torch.equal(steps.start[name], weights[f"model.{name}"]), name
    assert model.class_names == NOW
    assert len(model.model.calibration.prototypes) == len(NOW)
    assert_calibrated_for_its_weights(model, images)
    assert_same_state(model, CCL.load_from_checkpoint(last_checkpoint(tmp_path)))


def test_training_on_the_same_products_resumes(
    checkpoint: Path, sample_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = Steps()
    with caplog.at_level(logging.WARNING, "anomalib_ccl"):
        run = engine(tmp_path, steps, max_epochs=3, limit_val_batches=0)
        run.fit(ccl(), datamodule=data(sample_root, BEFORE), ckpt_path=checkpoint)
    assert steps.epochs == [2, 2, 2]
    assert "other products" not in caplog.text


@pytest.mark.parametrize("categories", [BEFORE, NOW], ids=["resumed", "on other products"])
def test_table_of_a_training_that_goes_on_is_that_of_its_own_weights(
    categories: list[str], checkpoint: Path, sample_root: Path, tmp_path: Path
) -> None:
    """anomalib's Engine.train tests the checkpoint that the training began with."""
    model, run, images = ccl(), engine(tmp_path / "run", max_epochs=3), data(sample_root, categories)
    run.train(model, datamodule=images, ckpt_path=checkpoint)
    engine(tmp_path / "own").test(CCL.load_from_checkpoint(run.best_model_path), datamodule=images)
    (printed,), (own,) = ((tmp_path / name).rglob("categories.csv") for name in ("run", "own"))
    pd.testing.assert_frame_equal(pd.read_csv(printed), pd.read_csv(own))
    # The same engine can still be asked to test the checkpoint itself.
    run.test(ccl(), datamodule=images, ckpt_path=checkpoint)
    assert not pd.read_csv(max((tmp_path / "run").rglob("categories.csv"))).empty


def test_the_checkpoint_that_a_training_began_with_can_be_compared_with_it(
    checkpoint: Path, sample_root: Path, tmp_path: Path
) -> None:
    model, images = ccl(), data(sample_root, BEFORE)
    engine(tmp_path / "run", max_epochs=3, limit_val_batches=0).fit(model, datamodule=images, ckpt_path=checkpoint)
    before = CCL.load_from_checkpoint(checkpoint, visualizer=False)
    for how in ("test", "predict"):
        getattr(engine(tmp_path), how)(model, datamodule=images, ckpt_path=checkpoint)
        assert_same_state(model, before)


@pytest.mark.parametrize(
    ("length", "limit"), [({"max_epochs": 2}, "max_epochs"), ({"max_epochs": -1, "max_steps": 6}, "max_steps")]
)
def test_a_checkpoint_with_nothing_left_to_train_is_refused(
    length: dict[str, int], limit: str, checkpoint: Path, sample_root: Path, tmp_path: Path
) -> None:
    message = rf"{checkpoint} has finished its training of 2 epochs \(6 steps\), .* raise {limit}, or .* recalibrate`"
    with pytest.raises(InputError, match=message):
        engine(tmp_path, limit_val_batches=0, **length).fit(ccl(), data(sample_root, BEFORE), ckpt_path=checkpoint)


def test_a_training_that_goes_on_finds_classes_as_before_and_refuses_to_find_others(
    sample_root: Path, tmp_path: Path
) -> None:
    first = ccl(class_labels="pseudo", n_pseudo_classes=2)
    engine(tmp_path, max_epochs=1, limit_val_batches=0).fit(first, datamodule=data(sample_root))
    checkpoint, steps = last_checkpoint(tmp_path), Steps()
    second = ccl(class_labels="pseudo", n_pseudo_classes=3)
    for other, message in (
        (second, "was trained with n_pseudo_classes=2, not n_pseudo_classes=3; leave it out"),
        (ccl(class_labels="category"), "was trained with class_labels='pseudo', not class_labels='category'"),
    ):
        with pytest.raises(InputError, match=message):
            engine(tmp_path, steps, max_epochs=2).fit(other, datamodule=data(sample_root), ckpt_path=checkpoint)
    assert steps.losses == []
    silent = ccl()
    engine(tmp_path, max_epochs=2, limit_val_batches=0).fit(silent, datamodule=data(sample_root), ckpt_path=checkpoint)
    assert silent.class_names == ["pseudo_0", "pseudo_1"]
    assert (silent.hparams["class_labels"], silent.hparams["n_pseudo_classes"]) == ("pseudo", 2)
    # Nothing hinders a prediction, for which the number means nothing.
    engine(tmp_path).predict(second, data_path=sample_root / "brick/test", ckpt_path=checkpoint)
    assert torch.equal(second.model.calibration.limits, first.model.calibration.limits)
