"""Trainings that go on from an earlier one on other products."""

import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from anomalib.engine import Engine
from lightning import Callback, seed_everything
from lightning.pytorch.callbacks import EarlyStopping

from anomalib_ccl import CCL, MultiCategory

BEFORE, NOW = ["brick", "retina"], ["brick", "grass", "tissue"]


class Steps(Callback):
    """Keep the epoch, the learning rate and a weight of the decoder before each step."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.first_weight: torch.Tensor | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.epochs.append(trainer.current_epoch)
        if self.first_weight is None:
            self.first_weight = next(pl_module.model.network.decoder.parameters()).detach().clone()


def make_model(**kwargs: Any) -> CCL:
    return CCL("mobilenetv3_small_100", False, image_size=(64, 64), visualizer=False, **kwargs)


def make_data(root: Path, categories: list[str], **kwargs: Any) -> MultiCategory:
    return MultiCategory(root=root, categories=categories, train_batch_size=6, num_workers=0, **kwargs)


def make_engine(folder: Path, *callbacks: Callback, **kwargs: Any) -> Engine:
    return Engine(
        default_root_dir=folder, callbacks=list(callbacks), accelerator="cpu", enable_progress_bar=False, **kwargs
    )


@pytest.fixture(scope="module")
def checkpoint(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two epochs on the products of before."""
    seed_everything(0)
    engine = make_engine(tmp_path_factory.mktemp("before"), max_epochs=2)
    engine.fit(make_model(), datamodule=make_data(sample_root, BEFORE))
    return Path(engine.best_model_path)


def assert_of_the_products_now(model: CCL) -> None:
    assert model.classes.names == NOW
    assert len(model.model.calibration.prototypes) == len(NOW)


ENDS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "as planned": ([], {}),
    "early": ([lambda: EarlyStopping("val_mean_image_AUROC", patience=1, min_delta=1000, mode="max")], {}),
}


@pytest.mark.parametrize("end", ENDS)
def test_training_on_other_products_starts_from_the_weights_and_finds_all_else_anew(
    end: str, checkpoint: Path, sample_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callbacks, arguments = ENDS[end]
    steps, model = Steps(), make_model(**arguments)
    engine = make_engine(tmp_path, steps, *(callback() for callback in callbacks), max_epochs=2)
    with caplog.at_level(logging.WARNING, "anomalib_ccl"):
        engine.fit(model, datamodule=make_data(sample_root, NOW), ckpt_path=checkpoint)
    (warning,) = (r.getMessage() for r in caplog.records if "other products" in r.getMessage())
    assert "(added: grass, tissue; gone: retina)" in warning
    assert steps.epochs == [0, 0, 0, 1, 1, 1]
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    name = next(name for name, _ in model.named_parameters() if "network.decoder" in name)
    assert torch.equal(steps.first_weight, saved[name])

    assert_of_the_products_now(model)
    loaded = CCL.load_from_checkpoint(engine.best_model_path, visualizer=False)
    assert_of_the_products_now(loaded)
    for name, value in model.model.calibration.named_buffers():
        assert torch.equal(value, loaded.model.calibration.get_buffer(name)), name


def test_model_in_memory_is_trained_further_on_other_products(
    checkpoint: Path, sample_root: Path, tmp_path: Path
) -> None:
    model = CCL.load_from_checkpoint(checkpoint, visualizer=False)
    make_engine(tmp_path, max_epochs=1).fit(model, datamodule=make_data(sample_root, NOW))
    assert_of_the_products_now(model)


def test_training_on_the_same_products_resumes(
    checkpoint: Path, sample_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps, model = Steps(), make_model()
    data = make_data(sample_root, BEFORE)
    with caplog.at_level(logging.WARNING, "anomalib_ccl"):
        make_engine(tmp_path, steps, max_epochs=3).fit(model, datamodule=data, ckpt_path=checkpoint)
    assert steps.epochs == [2, 2]
    assert "other products" not in caplog.text


@pytest.mark.parametrize("categories", [BEFORE, NOW], ids=["resumed", "on other products"])
def test_table_of_a_training_that_goes_on_is_that_of_its_own_weights(
    categories: list[str], checkpoint: Path, sample_root: Path, tmp_path: Path
) -> None:
    engine, data = make_engine(tmp_path / "run", max_epochs=4), make_data(sample_root, categories)
    engine.train(make_model(), datamodule=data, ckpt_path=checkpoint)
    tables = [Path(engine.trainer.default_root_dir) / "categories.csv"]
    for name, path in (("own", engine.best_model_path), ("before", checkpoint)):
        again = make_engine(tmp_path / name)
        again.test(CCL.load_from_checkpoint(path, visualizer=False), datamodule=data)
        tables += (tmp_path / name).rglob("categories.csv")
    printed, own, before = map(pd.read_csv, tables)
    pd.testing.assert_frame_equal(printed, own)
    assert not printed.equals(before)


def test_a_checkpoint_can_still_be_tested_by_the_engine_that_went_on_from_it(
    checkpoint: Path, sample_root: Path, tmp_path: Path
) -> None:
    model, engine, data = make_model(), make_engine(tmp_path, max_epochs=3), make_data(sample_root, BEFORE)
    engine.fit(model, datamodule=data, ckpt_path=checkpoint)
    engine.test(model, datamodule=data, ckpt_path=checkpoint)
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[f"model.{name}"]) for name, value in model.model.named_parameters())
