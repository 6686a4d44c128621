"""However a training ends, the model in memory and its last checkpoint are the same, and calibrated for its weights."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from anomalib.callbacks import ModelCheckpoint
from anomalib.metrics import AUROC, Evaluator
from anomalib.post_processing import PostProcessor
from lightning import Callback
from lightning.pytorch.callbacks import EarlyStopping
from trainings import (
    STEPS,
    Failure,
    Steps,
    assert_calibrated_for_its_weights,
    assert_same_state,
    ccl,
    data,
    engine,
    last_checkpoint,
)

from anomalib_ccl import CCL, MultiCategory
from anomalib_ccl.errors import InputError
from anomalib_ccl.recalibrate import recalibrate
from anomalib_ccl.training.calibrate import calibrate


class Interrupt(Callback):
    """Press Ctrl-C after so many batches, or in the validation that follows; or end the process as a cluster does."""

    def __init__(self, step: int, in_validation: bool = False, by: signal.Signals = signal.SIGINT) -> None:
        self.step, self.in_validation, self.by = step, in_validation, by
        self.pressed = False

    def _press(self, trainer: Any, in_validation: bool) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.step and in_validation == self.in_validation:
            self.pressed = True
            # Where the tests run in the background, Ctrl-C is ignored; after an interrupt, Lightning leaves it so.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.kill(os.getpid(), self.by)

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self._press(trainer, in_validation=False)

    def on_validation_batch_end(self, trainer: Any, *args: Any) -> None:
        self._press(trainer, in_validation=True)


class SaveByHand(Callback):
    """Save a checkpoint when an epoch ends, or begins."""

    def __init__(self, path: Path, ended: int | None = None, begun: int | None = None) -> None:
        self.path, self.ended, self.begun = path, ended, begun

    def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.current_epoch == self.ended:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.current_epoch == self.begun:
            trainer.save_checkpoint(self.path)


def early_stopping() -> EarlyStopping:
    """Stop after the second epoch: nothing gets better by a thousand."""
    return EarlyStopping("train_loss", patience=1, min_delta=1000, mode="max")


# Arguments of the engine; "model" and "data" are those of CCL and MultiCategory.
ENDS: dict[str, dict[str, Any]] = {
    "epochs": {"max_epochs": 2},
    "epochs that the validation interval does not divide": {"max_epochs": 3, "check_val_every_n_epoch": 2},
    "fewer epochs than the validation interval": {"max_epochs": 2, "check_val_every_n_epoch": 4},
    "steps in the middle of an epoch": {"max_epochs": 9, "max_steps": 5},
    "steps at the end of an epoch": {"max_epochs": 9, "max_steps": 2 * STEPS},
    "fewer batches an epoch": {"max_epochs": 2, "limit_train_batches": 2},
    "time": {"max_epochs": 999, "max_time": {"seconds": 1}},
    "early stopping": {"max_epochs": 9, "callbacks": [early_stopping]},
    "validation in the middle of epochs": {"max_epochs": 2, "val_check_interval": 2},
    "validation over the epochs": {"max_epochs": 2, "val_check_interval": 4, "check_val_every_n_epoch": None},
    "no validation images": {"max_epochs": 2, "data": {"val_split_mode": "none"}},
    "no validation": {"max_epochs": 2, "limit_val_batches": 0},
    "interrupt": {"max_epochs": 9, "callbacks": [lambda: Interrupt(STEPS + 2)]},
    "interrupt in the first epoch": {"max_epochs": 9, "callbacks": [lambda: Interrupt(1)]},
    "end by a cluster": {"max_epochs": 9, "callbacks": [lambda: Interrupt(STEPS + 1, by=signal.SIGTERM)]},
    "interrupt of a validation": {"max_epochs": 9, "callbacks": [lambda: Interrupt(2 * STEPS, in_validation=True)]},
    "monitored checkpoints": {
        "max_epochs": 2,
        "callbacks": [lambda: ModelCheckpoint(monitor="train_loss_epoch", mode="max")],
    },
    "checkpoint every few steps": {
        "max_steps": 5,
        "callbacks": [lambda: ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)],
    },
    "interrupt between two steps": {
        "max_epochs": 9,
        "accumulate_grad_batches": STEPS,
        "callbacks": [lambda: Interrupt(STEPS + 1), lambda: ModelCheckpoint(save_top_k=-1)],
    },
    "the last checkpoint twice": {"max_epochs": 2, "callbacks": [lambda: ModelCheckpoint(save_last=True)]},
    "a link to the last checkpoint": {"max_steps": 5, "callbacks": [lambda: ModelCheckpoint(save_last="link")]},
    "two kinds of checkpoints": {
        "max_epochs": 3,
        "callbacks": [
            lambda: ModelCheckpoint(filename="a"),
            lambda: ModelCheckpoint(filename="b", every_n_epochs=2),
        ],
    },
    "weights only": {
        "max_epochs": 1,
        "callbacks": [lambda: ModelCheckpoint(save_weights_only=True, filename="model")],
    },
    "without calibration": {"max_epochs": 3, "check_val_every_n_epoch": 2, "model": {"calibrate": False}},
    "with a memory": {"max_epochs": 3, "check_val_every_n_epoch": 2, "model": {"memory": 20}},
    "with nothing but a memory": {"model": {"recipe": "memory", "memory": 20}},
    "mixed precision": {"max_epochs": 1, "precision": "bf16-mixed", "model": {"memory": 20}},
}
#: Those that are tested and predicted with too.
USED = {
    "epochs that the validation interval does not divide",
    "interrupt",
    "without calibration",
    "with a memory",
    "with nothing but a memory",
}


def fit(folder: Path, root: Path, end: dict[str, Any], **arguments: Any) -> tuple[CCL, MultiCategory]:
    end = dict(end)
    model, images = ccl(**end.pop("model", {})), data(root, **end.pop("data", {}))
    callbacks = [callback() for callback in end.pop("callbacks", [])]
    with suppress(SystemExit):  # Lightning's answer to an interrupt is to exit
        engine(folder, *callbacks, **end).fit(model, datamodule=images, **arguments)
    assert all(getattr(callback, "pressed", True) for callback in callbacks)
    return model, images


def figures(model: CCL, folder: Path, images: MultiCategory) -> pd.DataFrame:
    engine(folder).test(model, datamodule=images)
    (path,) = folder.rglob("categories.csv")
    return pd.read_csv(path)


@pytest.mark.parametrize("end", ENDS)
def test_memory_and_the_last_checkpoint_are_of_one_moment(end: str, sample_root: Path, tmp_path: Path) -> None:
    model, images = fit(tmp_path / "run", sample_root, ENDS[end])
    loaded = CCL.load_from_checkpoint(last_checkpoint(tmp_path / "run"), visualizer=False)
    assert_same_state(model, loaded)
    assert loaded.class_names == model.class_names == ["brick", "retina"]
    for path in (tmp_path / "run").rglob("*.ckpt"):
        limits = torch.load(path, weights_only=True)["state_dict"]["model.calibration.limits"]
        assert bool(limits.numel()) == (end != "without calibration"), path
    if end == "without calibration":
        assert not loaded.model.calibration.is_calibrated
        with pytest.raises(InputError, match=r"is not calibrated, .* it was trained with calibrate=False"):
            recalibrate(last_checkpoint(tmp_path / "run"), images)
    elif end == "mixed precision":
        assert loaded.model.calibration.is_calibrated
    else:
        assert_calibrated_for_its_weights(model, images)
    if end in USED:
        of_memory, of_file = (figures(m, tmp_path / f"table {i}", images) for i, m in enumerate((model, loaded)))
        pd.testing.assert_frame_equal(of_memory, of_file)
        batches = [engine(tmp_path).predict(m, data_path=sample_root / "brick/test") for m in (model, loaded)]
        for ours, theirs in zip(*batches, strict=True):
            assert torch.equal(ours.pred_score, theirs.pred_score)
            assert torch.equal(ours.anomaly_map, theirs.anomaly_map)


def test_checkpoint_of_an_earlier_best_epoch_is_calibrated_for_its_own_weights(
    sample_root: Path, tmp_path: Path
) -> None:
    best = ModelCheckpoint(monitor="train_loss_epoch", mode="max", filename="best")  # which the first epoch has
    end = {"max_epochs": 3, "check_val_every_n_epoch": 2, "callbacks": [lambda: best]}
    model, images = fit(tmp_path, sample_root, end)
    assert torch.load(best.best_model_path, weights_only=True)["global_step"] == 2 * STEPS
    loaded = CCL.load_from_checkpoint(best.best_model_path)
    loaded.classes.index_of_image = model.classes.index_of_image
    assert_calibrated_for_its_weights(loaded, images)
    last = CCL.load_from_checkpoint(Path(best.best_model_path).with_name("last.ckpt"))
    assert not torch.equal(last.model.calibration.prototypes, loaded.model.calibration.prototypes)
    assert_same_state(last, model)


@pytest.mark.parametrize("monitor", [None, "train_loss_epoch"])
def test_a_checkpoint_of_an_earlier_training_stays_as_it_is(
    monitor: str | None, sample_root: Path, tmp_path: Path
) -> None:
    end = {"callbacks": [lambda: ModelCheckpoint(tmp_path / "same", "model", monitor, mode="max")]}
    fit(tmp_path / "first", sample_root, {"max_epochs": 2, **end})
    earlier = {path: path.read_bytes() for path in (tmp_path / "same").iterdir()}
    model, _ = fit(tmp_path / "second", sample_root, {"max_steps": STEPS + 2, **end})
    assert {path: path.read_bytes() for path in earlier} == earlier
    assert_same_state(CCL.load_from_checkpoint(last_checkpoint(tmp_path / "same")), model)


def test_an_interrupt_names_the_checkpoint_of_the_last_weights(
    sample_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, best in {
        "monitored": ModelCheckpoint(monitor="train_loss_epoch", mode="max"),
        "none": ModelCheckpoint(save_top_k=0),
    }.items():
        end = {"max_epochs": 9, "callbacks": [lambda best=best: best, lambda: Interrupt(STEPS + 2)]}
        fit(tmp_path / name, sample_root, end)
        assert caplog.messages[-1].endswith(f"s and saved: {last_checkpoint(tmp_path / name)}")


def test_a_post_processor_of_ones_own_finds_its_threshold_among_scores_like_those_of_a_test(
    sample_root: Path, tmp_path: Path
) -> None:
    end = {
        "max_epochs": 2,
        "model": {"post_processor": PostProcessor()},
        "data": {"val_split_mode": "same_as_test"},
    }
    model, images = fit(tmp_path / "run", sample_root, end)
    table = figures(model, tmp_path / "test", images).set_index("category")
    assert table.loc["mean", "missed"] < 1
    assert table.loc["mean", "false_alarms"] < 1


def test_a_failed_training_leaves_a_checkpoint_that_says_it_is_not_whole_and_is_completed_by_recalibration(
    sample_root: Path, tmp_path: Path
) -> None:
    model, images = ccl(memory=20), data(sample_root)
    with pytest.raises(RuntimeError, match="broken"):
        engine(tmp_path, Failure(), max_epochs=2).fit(model, datamodule=images)
    left = last_checkpoint(tmp_path)
    for broken in (model, CCL.load_from_checkpoint(left)):
        assert not broken.model.calibration.is_calibrated
        for use in ({"datamodule": images}, {"dataloaders": images.test_dataloader()}):
            with pytest.raises(InputError, match=r"this CCL model is not calibrated, .* train it to its end, or give"):
                engine(tmp_path).test(broken, **use)
        with pytest.raises(InputError, match="completed by `anomalib-ccl recalibrate`"):
            engine(tmp_path).predict(broken, data_path=sample_root / "brick/test")
    with pytest.raises(InputError, match="knows no products; resume its training with `anomalib fit --ckpt_path`"):
        recalibrate(left, images, add=True)
    completed = CCL.load_from_checkpoint(recalibrate(left, images).path)
    completed.classes.index_of_image = model.classes.index_of_image
    assert_calibrated_for_its_weights(completed, images)


def test_only_what_is_kept_or_looked_at_is_calibrated(sample_root: Path, tmp_path: Path, monkeypatch) -> None:
    calibrated: list[int] = []
    for name, end in {
        "replaced": {"max_epochs": 3},
        "saved by hand": {"max_epochs": 3, "callbacks": [lambda: SaveByHand(tmp_path / "ended.ckpt", ended=0)]},
        "saved at a start": {
            "max_epochs": 3,
            "data": {"val_split_mode": "none"},
            "callbacks": [lambda: SaveByHand(tmp_path / "begun.ckpt", begun=1)],
        },
        "replaced by the next step's": {
            "max_epochs": 3,
            "callbacks": [lambda: ModelCheckpoint(every_n_train_steps=1)],
        },
        "kept": {"max_epochs": 3, "callbacks": [lambda: ModelCheckpoint(save_top_k=-1)]},
        "looked at": {
            "max_epochs": 3,
            "model": {"evaluator": Evaluator(val_metrics=[AUROC(["pred_score", "gt_label"])])},
        },
    }.items():
        count = 0

        def counted(*args: Any, **arguments: Any) -> None:
            nonlocal count
            count += 1
            calibrate(*args, **arguments)

        monkeypatch.setattr("anomalib_ccl.training.completion.calibrate", counted)
        fit(tmp_path / name, sample_root, end)
        calibrated.append(count)
    assert calibrated == [1, 2, 2, 1, 3, 3]
    for name in ("ended", "begun"):
        assert CCL.load_from_checkpoint(tmp_path / f"{name}.ckpt").model.calibration.is_calibrated


@pytest.mark.parametrize(("end", "options"), [("failure", {}), ("interrupt", {"memory": 20})])
def test_a_broken_off_training_goes_on_to_the_bit(
    end: str, options: dict[str, Any], sample_root: Path, tmp_path: Path
) -> None:
    whole, resumed = Steps(), Steps()
    expected, _ = fit(
        tmp_path / "whole", sample_root, {"max_epochs": 3, "callbacks": [lambda: whole], "model": options}
    )
    broken = {"max_epochs": 3, "model": options}
    if end == "failure":
        with pytest.raises(RuntimeError, match="broken"):
            fit(tmp_path / "broken", sample_root, {**broken, "callbacks": [Failure]})
    else:  # at the end of the epoch, because batches of a part of one are drawn anew
        fit(tmp_path / "broken", sample_root, {**broken, "callbacks": [lambda: Interrupt(STEPS, in_validation=True)]})
    torch.manual_seed(8)
    again = {**broken, "callbacks": [lambda: resumed]}
    found, _ = fit(tmp_path / "again", sample_root, again, ckpt_path=last_checkpoint(tmp_path / "broken"))
    assert [step["train_loss_step"] for step in resumed.losses] == [
        step["train_loss_step"] for step in whole.losses[STEPS:]
    ]
    assert resumed.rates == whole.rates[STEPS:]
    assert_same_state(found, expected)
