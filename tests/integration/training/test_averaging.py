"""The average of the weights in anomalib's engine: what is averaged, what is not, and what is saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.engine import Engine
from lightning import Callback, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging

from anomalib_ccl import CCL, MultiCategory

DECAY = 0.8


class SlowAverage(Callback):
    """Averages the trained parameters step by step, as the formula says."""

    def __init__(self) -> None:
        self.average: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad:
                value = parameter.detach().double()
                before = self.average.get(name, value)
                self.average[name] = DECAY * before + (1 - DECAY) * value


def make_model(**kwargs: Any) -> CCL:
    seed_everything(0)
    return CCL("tf_efficientnet_lite0", image_size=(64, 64), visualizer=False, ema_decay=DECAY, **kwargs)


def fit(
    model: CCL,
    root: Path,
    folder: Path,
    *callbacks: Callback,
    epochs: int = 2,
    val_split_mode: str | None = None,
    **kwargs: Any,
) -> Engine:
    engine = Engine(
        max_epochs=epochs,
        default_root_dir=folder,
        callbacks=list(callbacks),
        accelerator="cpu",
        enable_progress_bar=False,
    )
    data = MultiCategory(root=root, train_batch_size=8, num_workers=0, val_split_mode=val_split_mode)
    engine.fit(model, datamodule=data, **kwargs)
    return engine


@pytest.fixture(scope="module")
def trained(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[CCL, Engine, SlowAverage]:
    model, slow = make_model(), SlowAverage()
    return model, fit(model, sample_root, tmp_path_factory.mktemp("trained"), slow), slow


def test_trained_model_has_the_average_of_its_weights(trained: tuple[CCL, Engine, SlowAverage]) -> None:
    model, _, slow = trained
    parameters = dict(model.named_parameters())
    assert slow.average
    for name, expected in slow.average.items():
        torch.testing.assert_close(parameters[name].detach().double(), expected, rtol=1e-4, atol=1e-6, msg=name)


def test_teacher_is_not_changed(trained: tuple[CCL, Engine, SlowAverage]) -> None:
    expected = make_model().model.network.teacher.state_dict()
    for name, value in trained[0].model.network.teacher.state_dict().items():
        assert torch.equal(value, expected[name]), name


@torch.no_grad()
def scores(model: CCL, loader: Any) -> torch.Tensor:
    model.eval()
    return torch.cat([model.model(model.pre_processor.transform(batch.image)).pred_score for batch in loader])


def test_thresholds_are_those_of_the_average(trained: tuple[CCL, Engine, SlowAverage]) -> None:
    model, engine, _ = trained
    expected = scores(model, engine.trainer.datamodule.val_dataloader())
    assert model.post_processor.image_max.item() == pytest.approx(expected.max().item(), rel=1e-4)
    assert model.post_processor.image_min.item() == pytest.approx(expected.min().item(), rel=1e-4)


@pytest.mark.parametrize("val_split_mode", [None, "none"])
def test_limits_are_those_of_the_average(sample_root: Path, tmp_path: Path, val_split_mode: str | None) -> None:
    model = make_model(false_alarm_rate=0.5)
    engine = fit(model, sample_root, tmp_path, val_split_mode=val_split_mode)
    # Half of a class's normal images lie above its median, were its own spread all that counts.
    share = (scores(model, engine.trainer.datamodule.train_dataloader()) > 1).float().mean().item()
    assert share == pytest.approx(0.5, abs=0.2)


def test_checkpoint_has_the_average(trained: tuple[CCL, Engine, SlowAverage]) -> None:
    model, engine, _ = trained
    expected = model.state_dict()
    for name, value in CCL.load_from_checkpoint(engine.best_model_path).state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_resumed_training_goes_on_with_weights_and_average(
    trained: tuple[CCL, Engine, SlowAverage], sample_root: Path, tmp_path: Path
) -> None:
    _, engine, before = trained
    resumed, slow = make_model(), SlowAverage()
    slow.average = dict(before.average)
    fit(resumed, sample_root, tmp_path, slow, epochs=3, ckpt_path=engine.best_model_path)
    parameters = dict(resumed.named_parameters())
    for name, expected in slow.average.items():
        torch.testing.assert_close(parameters[name].detach().double(), expected, rtol=1e-4, atol=1e-6, msg=name)


def test_lightnings_own_averages_are_refused_before_the_training(sample_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"EMAWeightAveraging would average the thresholds .* ema_decay=0\.99 instead"):
        fit(make_model(), sample_root, tmp_path, EMAWeightAveraging())
