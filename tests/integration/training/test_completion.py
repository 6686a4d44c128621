"""However a training ends: the model in memory, its last checkpoint and the table of its test belong together."""

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from anomalib.callbacks import ModelCheckpoint
from anomalib.engine import Engine
from lightning import Callback, seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from recorded import run

from anomalib_ccl import CCL, MultiCategory
from anomalib_ccl.insight import collect_scores
from anomalib_ccl.model.calibration import ClassCalibration

# Two products of six training images each, in batches of four: three steps an epoch.
STEPS = 3


class Interrupt(Callback):
    """Press Ctrl-C at a step, or in the validation that follows it; or end the process as a cluster does."""

    def __init__(self, step: int, in_validation: bool = False, by: signal.Signals = signal.SIGINT) -> None:
        self.step = step
        self.by = by
        self.in_validation = in_validation
        self.pressed = False

    def _press(self, trainer: Any, in_validation: bool) -> None:
        if trainer.global_step == self.step and in_validation == self.in_validation:
            self.pressed = True
            # Where the tests run in the background, Ctrl-C is ignored; after an interrupt, Lightning leaves it so.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.kill(os.getpid(), self.by)

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self._press(trainer, in_validation=False)

    def on_validation_batch_end(self, trainer: Any, *args: Any) -> None:
        self._press(trainer, in_validation=True)


class Failure(Callback):
    """Fail in the second epoch."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.current_epoch == 1:
            raise RuntimeError("broken")


def early_stopping(monitor: str = "train_loss") -> EarlyStopping:
    """Stop after the second epoch: nothing gets better by a thousand."""
    return EarlyStopping(monitor=monitor, patience=1, min_delta=1000, mode="max")


# Arguments of the engine; "model" and "data" are those of CCL and MultiCategory.
ENDS: dict[str, dict[str, Any]] = {
    "epochs": {"max_epochs": 2},
    "epochs that the validation interval does not divide": {"max_epochs": 3, "check_val_every_n_epoch": 2},
    "fewer epochs than the validation interval": {"max_epochs": 2, "check_val_every_n_epoch": 4},
    "steps in the middle of an epoch": {"max_epochs": 9, "max_steps": 5},
    "steps at the end of an epoch": {"max_epochs": 9, "max_steps": 2 * STEPS},
    "fewer batches an epoch": {"max_epochs": 2, "limit_train_batches": 2},
    "time": {"max_epochs": 999, "max_time": {"seconds": 1}},
    "early stopping by the loss": {"max_epochs": 9, "callbacks": [early_stopping]},
    "early stopping by a validation": {"max_epochs": 9, "callbacks": [lambda: early_stopping("val_mean_image_AUROC")]},
    "validation in the middle of epochs": {"max_epochs": 2, "val_check_interval": 2},
    "validation over the epochs": {"max_epochs": 2, "val_check_interval": 4, "check_val_every_n_epoch": None},
    "no validation images": {"max_epochs": 2, "data": {"val_split_mode": "none"}},
    "no validation": {"max_epochs": 2, "limit_val_batches": 0},
    "a part of the validation": {"max_epochs": 2, "limit_val_batches": 1, "check_val_every_n_epoch": 2},
    "interrupt": {"max_epochs": 9, "callbacks": [lambda: Interrupt(STEPS + 2)]},
    "interrupt in the first epoch": {"max_epochs": 9, "callbacks": [lambda: Interrupt(1)]},
    "end by a cluster": {"max_epochs": 9, "callbacks": [lambda: Interrupt(STEPS + 1, by=signal.SIGTERM)]},
    "interrupt of a validation": {"max_epochs": 9, "callbacks": [lambda: Interrupt(2 * STEPS, in_validation=True)]},
    "monitored checkpoints": {
        "max_epochs": 2,
        "callbacks": [lambda: ModelCheckpoint(monitor="train_loss_epoch", mode="max")],
    },
    "without calibration": {"max_epochs": 3, "check_val_every_n_epoch": 2, "model": {"calibrate": False}},
    "false-alarm rate": {"max_epochs": 3, "check_val_every_n_epoch": 2, "model": {"false_alarm_rate": 0.1}},
    "checkpoint every few steps": {
        "max_steps": 5,
        "callbacks": [lambda: ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)],
    },
    "weights only": {
        "max_epochs": 1,
        "callbacks": [lambda: ModelCheckpoint(save_weights_only=True, filename="model")],
    },
}


# Nothing to validate on, or a rate of false alarms that says where the threshold is.
THRESHOLDS_FROM_LIMITS = {"no validation images", "no validation", "false-alarm rate"}


def make(folder: Path, root: Path, end: dict[str, Any]) -> tuple[CCL, Engine, MultiCategory]:
    end = dict(end)
    data, model = ({**kwargs, **end.pop(name, {})} for name, kwargs in (("data", {}), ("model", {})))
    callbacks = [callback() for callback in end.pop("callbacks", [])]
    ccl = CCL("mobilenetv3_small_100", False, image_size=(64, 64), visualizer=False, **model)
    engine = make_engine(folder, callbacks=callbacks, **end)
    categories = ["brick", "retina"]
    return ccl, engine, MultiCategory(root=root, categories=categories, train_batch_size=4, num_workers=0, **data)


def make_engine(folder: Path, **kwargs: Any) -> Engine:
    return Engine(default_root_dir=folder, accelerator="cpu", enable_progress_bar=False, logger=False, **kwargs)


def fit(folder: Path, root: Path, end: dict[str, Any]) -> tuple[CCL, Engine, MultiCategory]:
    seed_everything(0)
    model, engine, data = make(folder, root, end)
    # Lightning's answer to an interrupt is to exit.
    with suppress(SystemExit):
        engine.fit(model, datamodule=data)
    for callback in engine.trainer.callbacks:
        assert getattr(callback, "pressed", True)
    return model, engine, data


def last_checkpoint(folder: Path) -> Path:
    return max(folder.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)


def predict(model: CCL, folder: Path, root: Path) -> dict[str, torch.Tensor]:
    batches = make_engine(folder).predict(model, data_path=root / "brick/test")
    return {
        name: torch.cat([getattr(batch, name).flatten() for batch in batches])
        for name in ("pred_score", "pred_label", "anomaly_map")
    }


def table(model: CCL, folder: Path, data: MultiCategory) -> pd.DataFrame:
    make_engine(folder).test(model, datamodule=data)
    (path,) = folder.rglob("categories.csv")
    return pd.read_csv(path)


def thresholds(model: CCL) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.post_processor.named_buffers(recurse=False)}


def assert_calibrated_for_its_weights(model: CCL, data: MultiCategory) -> None:
    """Calibrate once more, by hand, on the views of the training images that a calibration sees."""
    kept = model.model.calibration
    scores = collect_scores(model, data)
    training = (scores.images["subset"] == "train").to_numpy()
    images = scores.images[training]
    anew = ClassCalibration()
    labels = torch.tensor([model.classes.names.index(name) for name in images["category"]])
    anew.fit(torch.from_numpy(scores.embeddings[training]), torch.tensor(images["raw"].to_numpy()), labels)
    for name, value in anew.named_buffers():
        torch.testing.assert_close(value, getattr(kept, name), rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("end", ENDS)
def test_memory_last_checkpoint_and_table_are_of_one_moment(end: str, sample_root: Path, tmp_path: Path) -> None:
    model, _, data = fit(tmp_path / "run", sample_root, ENDS[end])
    loaded = CCL.load_from_checkpoint(last_checkpoint(tmp_path / "run"), visualizer=False)
    if ENDS[end].get("model", {}).get("calibrate", True):
        assert_calibrated_for_its_weights(loaded, data)
    else:
        assert not loaded.model.calibration.is_calibrated

    in_memory = predict(model, tmp_path / "memory", sample_root)
    # Without calibration, the scores of one product may all be above those of the other.
    assert in_memory["pred_score"].unique().numel() > 1 or not loaded.model.calibration.is_calibrated
    for name, value in predict(loaded, tmp_path / "file", sample_root).items():
        assert torch.equal(value, in_memory[name]), name
    of_memory, of_file = (table(m, tmp_path / f"table of {i}", data) for i, m in enumerate((model, loaded)))
    pd.testing.assert_frame_equal(of_memory, of_file)

    kept = thresholds(loaded)
    assert not torch.stack(list(kept.values())).isnan().any()
    if end in THRESHOLDS_FROM_LIMITS:
        assert (kept["_image_threshold"], kept["image_min"], kept["image_max"]) == (1, 0, 2)
    elif end != "a part of the validation":
        make_engine(tmp_path / "validation").validate(loaded, datamodule=data)
        torch.testing.assert_close(thresholds(loaded), kept)


def test_checkpoint_of_an_earlier_best_epoch_is_calibrated_for_its_own_weights(
    sample_root: Path, tmp_path: Path
) -> None:
    best = ModelCheckpoint(monitor="train_loss_epoch", mode="max", filename="best")  # which the first epoch has
    end = {"max_epochs": 3, "check_val_every_n_epoch": 2, "callbacks": [lambda: best]}
    model, _, data = fit(tmp_path / "run", sample_root, end)
    loaded = CCL.load_from_checkpoint(best.best_model_path, visualizer=False)
    assert torch.load(best.best_model_path)["global_step"] == 2 * STEPS
    assert_calibrated_for_its_weights(loaded, data)
    kept = thresholds(loaded)
    make_engine(tmp_path / "validation").validate(loaded, datamodule=data)
    torch.testing.assert_close(thresholds(loaded), kept)

    last = CCL.load_from_checkpoint(Path(best.best_model_path).with_name("last.ckpt"), visualizer=False)
    assert not torch.equal(last.model.calibration.prototypes, loaded.model.calibration.prototypes)
    expected = predict(model, tmp_path / "memory", sample_root)
    assert torch.equal(predict(last, tmp_path / "file", sample_root)["pred_score"], expected["pred_score"])


def test_model_of_a_training_that_failed_is_not_calibrated(sample_root: Path, tmp_path: Path) -> None:
    model, engine, data = make(tmp_path, sample_root, {"max_epochs": 2, "callbacks": [Failure]})
    with pytest.raises(RuntimeError, match="broken"):
        engine.fit(model, datamodule=data)
    assert not model.model.calibration.is_calibrated
    assert model.post_processor.image_threshold.isnan()
    loaded = CCL.load_from_checkpoint(last_checkpoint(tmp_path), visualizer=False)
    assert_calibrated_for_its_weights(loaded, data)


def test_an_interrupted_training_goes_on_where_it_was(sample_root: Path, tmp_path: Path) -> None:
    fit(tmp_path / "run", sample_root, {"max_epochs": 9, "callbacks": [lambda: Interrupt(STEPS + 1)]})
    model, engine, data = make(tmp_path / "again", sample_root, {"max_epochs": 3})
    engine.fit(model, datamodule=data, ckpt_path=last_checkpoint(tmp_path / "run"))
    assert (engine.trainer.current_epoch, engine.trainer.global_step) == (3, 3 * STEPS)
    assert_calibrated_for_its_weights(model, data)


def test_an_interrupted_command_leaves_a_checkpoint_that_predicts(sample_root: Path, tmp_path: Path) -> None:
    interrupt = json.dumps([{"class_path": "recorder.Recorder", "init_args": {"folder": ".", "interrupt_at": 8}}])
    status, output = run(
        tmp_path / "run", "train", sample_root, f"--trainer.callbacks={interrupt}", "--trainer.max_epochs=50"
    )
    assert status == 1, output
    assert "Interrupted: the model is calibrated as it is, and saved." in output
    checkpoint = torch.load(last_checkpoint(tmp_path), weights_only=True)
    assert checkpoint["global_step"] == 8
    assert CCL.load_from_checkpoint(last_checkpoint(tmp_path)).model.calibration.is_calibrated
