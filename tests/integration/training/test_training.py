"""CCL in anomalib's engine: what training does and does not change, checkpoints, seeds, labels."""

import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from anomalib.data import Folder, MVTecAD
from anomalib.engine import Engine
from anomalib.models import get_model
from lightning import Callback, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging

from anomalib_ccl import CCL, MultiCategory

SMALL = {
    "backbone": "mobilenetv3_small_100",
    "pre_trained": False,
    "image_size": (64, 64),
    "visualizer": False,
}


class History(Callback):
    """Keep what the trainer logged and the learning rates, step by step."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []
        self.rates: list[list[float]] = []
        self.gradient_norms: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.gradient_norms.append(torch.nn.utils.get_total_norm(gradients).item())
        self.losses.append({key: value.item() for key, value in trainer.callback_metrics.items()})
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])


class StopAtOnce(Callback):
    """End the training after its first step."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        trainer.should_stop = True


class BreakOff(Callback):
    """Fail in the second epoch."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.current_epoch == 1:
            raise RuntimeError("broken off")


def make_engine(folder: Path, *callbacks: Callback, **kwargs: Any) -> Engine:
    return Engine(
        default_root_dir=folder,
        callbacks=list(callbacks),
        accelerator="cpu",
        enable_progress_bar=False,
        **kwargs,
    )


def make_data(root: Path, **kwargs: Any) -> MultiCategory:
    return MultiCategory(root=root, train_batch_size=8, num_workers=0, **kwargs)


def fit(model: CCL, root: Path, folder: Path, *callbacks: Callback, epochs: int = 1, **kwargs: Any) -> Engine:
    engine = make_engine(folder, *callbacks, max_epochs=epochs)
    engine.fit(model, datamodule=make_data(root), **kwargs)
    return engine


@pytest.fixture(scope="module")
def trained(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, CCL, History]:
    seed_everything(0)
    model, history = CCL(**SMALL), History()
    return fit(model, sample_root, tmp_path_factory.mktemp("trained"), history, epochs=2), model, history


def test_each_loss_term_and_the_total_are_logged(trained: tuple[Engine, CCL, History]) -> None:
    _, _, history = trained
    last = history.losses[-1]
    names = ("train_loss", "train_loss_reconstruction", "train_loss_local", "train_loss_global")
    assert all(last[name] > 0 for name in names)
    epoch_end = trained[0].trainer.callback_metrics
    assert epoch_end["train_loss_epoch"].item() == pytest.approx(
        sum(epoch_end[name].item() for name in names[1:]), rel=1e-4
    )


def test_training_lowers_the_loss(sample_root: Path, tmp_path: Path) -> None:
    seed_everything(0)
    history = History()
    fit(CCL(**SMALL), sample_root, tmp_path, history, epochs=6)
    assert history.losses[-1]["train_loss"] < 0.8 * history.losses[0]["train_loss"]


def test_teacher_is_bit_identical_after_training_and_has_no_optimizer_state(sample_root: Path, tmp_path: Path) -> None:
    model = CCL(**SMALL)
    teacher = model.model.network.teacher
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    engine = fit(model, sample_root, tmp_path)
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    optimized = {id(p) for group in engine.trainer.optimizers[0].param_groups for p in group["params"]}
    assert not optimized & {id(p) for p in teacher.parameters()}
    assert optimized == {id(p) for p in model.parameters() if p.requires_grad}
    assert all(p.grad is None for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())


def test_learning_rates_are_the_papers_and_fall_to_a_tenth_at_80_percent(sample_root: Path, tmp_path: Path) -> None:
    history = History()
    fit(CCL(**SMALL), sample_root, tmp_path, history, epochs=2)
    steps = len(history.rates)
    switch = int(0.8 * steps)
    assert history.rates[: switch - 1] == [[0.005, 0.001]] * (switch - 1)
    for rates in history.rates[switch:]:
        assert rates == pytest.approx([0.0005, 0.0001])


@pytest.mark.parametrize(("told", "norm"), [({}, 5), ({"gradient_clip_val": 1}, 1), ({"gradient_clip_val": 0}, None)])
def test_norm_of_the_gradients_is_at_most_the_papers_5_unless_told(
    sample_root: Path, tmp_path: Path, told: dict[str, float], norm: float | None
) -> None:
    seed_everything(0)
    history = History()
    make_engine(tmp_path, history, max_epochs=1, **told).fit(CCL(**SMALL), datamodule=make_data(sample_root))
    if norm is None:
        assert max(history.gradient_norms) > 5
    else:
        assert max(history.gradient_norms) == pytest.approx(norm, rel=1e-3)


def test_losses_as_released_and_all_options_of_matching_train(sample_root: Path, tmp_path: Path) -> None:
    for number, options in enumerate([{"losses": "released"}, {"match_on": "projected", "match_window": 3}]):
        history = History()
        fit(CCL(**SMALL, **options), sample_root, tmp_path / str(number), history)
        assert all(math.isfinite(losses["train_loss"]) for losses in history.losses)
        assert history.losses[-1]["train_loss_local"] > 0


def test_cosine_schedule_lets_the_learning_rates_fall_to_zero(sample_root: Path, tmp_path: Path) -> None:
    history = History()
    fit(CCL(schedule="cosine", **SMALL), sample_root, tmp_path, history, epochs=2)
    steps = len(history.rates)
    for step, rates in enumerate(history.rates, start=1):
        share = (1 + math.cos(math.pi * step / steps)) / 2
        assert rates == pytest.approx([0.005 * share, 0.001 * share], abs=1e-9)


@pytest.mark.parametrize(
    ("told", "epochs"), [({}, 100), ({"max_epochs": 3}, 3), ({"max_epochs": -1, "max_steps": 1}, -1)]
)
def test_training_takes_the_papers_100_epochs_unless_told(
    sample_root: Path, tmp_path: Path, told: dict[str, int], epochs: int
) -> None:
    engine = make_engine(tmp_path, StopAtOnce(), **told)
    engine.fit(CCL(**SMALL), datamodule=make_data(sample_root))
    assert engine.trainer.max_epochs == epochs


def test_training_in_mixed_precision_begins_with_the_same_loss_and_lowers_it(sample_root: Path, tmp_path: Path) -> None:
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        seed_everything(0)
        history = History()
        engine = make_engine(tmp_path / precision, history, max_epochs=6, precision=precision)
        engine.fit(CCL(**SMALL), datamodule=make_data(sample_root))
        losses[precision] = [step["train_loss"] for step in history.losses]
    assert losses["bf16-mixed"][0] == pytest.approx(losses["32-true"][0], rel=0.02)
    assert losses["bf16-mixed"][-1] < 0.8 * losses["bf16-mixed"][0]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_training_ends_with_a_model_that_can_be_saved(sample_root: Path, tmp_path: Path) -> None:
    seed_everything(0)
    model, history = CCL(**SMALL, torch_compile=True, local_weight=0), History()
    engine = make_engine(tmp_path, history, max_epochs=3)
    engine.fit(model, datamodule=make_data(sample_root))
    assert history.losses[-1]["train_loss"] < history.losses[0]["train_loss"]
    assert not [key for key in model.state_dict() if "_orig_mod" in key]
    model.to_torch(tmp_path)
    assert CCL.load_from_checkpoint(engine.best_model_path).model.calibration.is_calibrated


def test_two_runs_with_one_seed_give_the_same_losses(sample_root: Path, tmp_path: Path) -> None:
    histories = []
    for run in range(2):
        seed_everything(7)
        histories.append(History())
        fit(CCL(**SMALL), sample_root, tmp_path / str(run), histories[-1])
    assert histories[0].losses == histories[1].losses


def test_a_weight_of_zero_switches_a_loss_off(sample_root: Path, tmp_path: Path) -> None:
    history = History()
    fit(
        CCL(local_weight=0, global_weight=0, projection="none", noise_probability=0, **SMALL),
        sample_root,
        tmp_path,
        history,
    )
    last = history.losses[-1]
    assert "train_loss_local" not in last
    assert "train_loss_global" not in last
    assert last["train_loss"] == pytest.approx(last["train_loss_reconstruction"])


@pytest.mark.parametrize("weights_only", [None, True])
def test_checkpoint_gives_identical_predictions(
    trained: tuple[Engine, CCL, History], sample_root: Path, weights_only: bool | None
) -> None:
    engine, model, _ = trained
    kwargs = {} if weights_only is None else {"weights_only": weights_only}
    loaded = CCL.load_from_checkpoint(engine.best_model_path, visualizer=False, **kwargs)
    images = torch.rand(2, 3, 64, 64)
    expected, actual = model.cpu().eval()(images), loaded.eval()(images)
    assert torch.equal(actual.anomaly_map, expected.anomaly_map)
    assert torch.equal(actual.pred_score, expected.pred_score)


def test_checkpoint_loads_without_the_file_that_the_weights_came_from(sample_root: Path, tmp_path: Path) -> None:
    weights = tmp_path / "backbone.pth"
    torch.save(timm.create_model("mobilenetv3_small_100").state_dict(), weights)
    model = CCL(**{**SMALL, "backbone_weights": weights})
    engine = fit(model, sample_root, tmp_path)
    weights.unlink()
    loaded = CCL.load_from_checkpoint(engine.best_model_path)
    teacher, expected = loaded.model.network.teacher.state_dict(), model.model.network.teacher.state_dict()
    assert all(torch.equal(teacher[name], expected[name]) for name in expected)


def test_training_resumes_from_a_checkpoint(
    trained: tuple[Engine, CCL, History], sample_root: Path, tmp_path: Path
) -> None:
    engine, _, history = trained
    resumed = fit(CCL(**SMALL), sample_root, tmp_path, epochs=3, ckpt_path=engine.best_model_path)
    assert resumed.trainer.current_epoch == 3
    assert resumed.trainer.global_step == len(history.losses) * 3 // 2


def test_training_broken_off_resumes_with_the_random_numbers_that_it_would_have_drawn(
    sample_root: Path, tmp_path: Path
) -> None:
    seed_everything(7)
    whole, resumed = History(), History()
    fit(CCL(**SMALL), sample_root, tmp_path / "whole", whole, epochs=2)
    seed_everything(7)
    with pytest.raises(RuntimeError, match="broken off"):
        fit(CCL(**SMALL), sample_root, tmp_path / "broken", BreakOff(), epochs=2)
    (checkpoint,) = (tmp_path / "broken").rglob("model.ckpt")
    seed_everything(8)
    fit(CCL(**SMALL), sample_root, tmp_path / "resumed", resumed, epochs=2, ckpt_path=checkpoint)
    half = len(whole.losses) // 2
    assert [losses["train_loss_step"] for losses in resumed.losses] == [
        losses["train_loss_step"] for losses in whole.losses[half:]
    ]
    assert resumed.rates == whole.rates[half:]


def test_each_epoch_is_saved_where_there_is_no_validation(sample_root: Path, tmp_path: Path) -> None:
    engine = make_engine(tmp_path, max_epochs=1, check_val_every_n_epoch=10)
    engine.fit(CCL(**SMALL), datamodule=make_data(sample_root, val_split_mode="none"))
    assert Path(engine.best_model_path).is_file()


def test_plain_mvtec_category_trains_as_one_class_with_one_warning(
    sample_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    category = next(folder.name for folder in sorted(sample_root.iterdir()) if folder.is_dir())
    data = MVTecAD(sample_root, category, train_batch_size=4, num_workers=0)
    history = History()
    with caplog.at_level(logging.INFO, "anomalib_ccl"):
        make_engine(tmp_path, history, max_epochs=2).fit(CCL(**SMALL), datamodule=data)
    assert sum("All training images are of one class" in message for message in caplog.messages) == 1
    assert not any("Pseudo-classes found" in message for message in caplog.messages)
    last = history.losses[-1]
    assert last["train_loss_local"] == last["train_loss_global"] == 0


def test_folder_of_mixed_products_trains_with_the_classes_of_its_sub_folders(sample_root: Path, tmp_path: Path) -> None:
    for category in sorted(folder for folder in sample_root.iterdir() if folder.is_dir())[:2]:
        target = tmp_path / "normal" / category.name
        target.mkdir(parents=True)
        for image in (category / "train" / "good").iterdir():
            (target / image.name).write_bytes(image.read_bytes())
    data = Folder("mixed", "normal", tmp_path, train_batch_size=6, num_workers=0, val_split_mode="from_train", seed=0)
    model, history = CCL(class_labels="folder", **SMALL), History()
    make_engine(tmp_path, history, max_epochs=1).fit(model, datamodule=data)
    assert set(model.classes.index_of_image.values()) == {0, 1}
    assert history.losses[-1]["train_loss_local"] > 0


def test_arguments_from_an_omegaconf_config_survive_the_checkpoint(sample_root: Path, tmp_path: Path) -> None:
    arguments = {**SMALL, "image_size": [64, 32]}
    model = get_model({"class_path": "CCL", "init_args": arguments})
    engine = fit(model, sample_root, tmp_path)
    loaded = CCL.load_from_checkpoint(engine.best_model_path)
    assert tuple(loaded.input_size) == (64, 32)
    assert loaded.hparams["image_size"] == (64, 32)


def test_images_are_normalised_as_the_backbone_was_trained() -> None:
    transform = CCL(**{**SMALL, "backbone": "tf_efficientnet_lite0"}).pre_processor.transform
    assert transform.transforms[1].mean == [0.5, 0.5, 0.5]
    assert transform.transforms[1].std == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"temperature": 0}, "temperature must be greater than 0, got 0"),
        ({"local_weight": -1}, "local_weight must not be negative, got -1; 0 switches the loss off"),
        ({"false_alarm_rate": 0}, r"false_alarm_rate must lie in \(0, 0.5\], got 0"),
        ({"image_size": (4, 4)}, "image_size must be multiples of 32 pixels, got 4 × 4"),
        ({"losses": "official"}, "unknown losses 'official'; choose one of paper, released"),
        ({"schedule": "linear"}, "unknown schedule 'linear'; choose one of step, cosine"),
        ({"class_labels": "guess"}, "unknown class_labels 'guess'; choose one of auto, category, folder, pseudo"),
        ({"n_pseudo_classes": 0}, "n_pseudo_classes must be 'auto' or a whole number from 1 on, got 0"),
        ({"backbone": "resnet"}, "unknown backbone 'resnet'"),
    ],
)
def test_bad_arguments_are_named_with_the_way_out(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CCL(**{**SMALL, **argument})


@pytest.mark.parametrize("average", [EMAWeightAveraging, lambda: StochasticWeightAveraging(swa_lrs=1e-3)])
def test_averages_of_the_weights_are_refused_before_the_training(
    average: Callable[[], Callback], sample_root: Path, tmp_path: Path
) -> None:
    data = MultiCategory(root=sample_root, num_workers=0)
    with pytest.raises(ValueError, match=r"WeightAveraging would give CCL other weights than those that .* take it"):
        make_engine(tmp_path, average(), max_epochs=1).fit(CCL(**SMALL), datamodule=data)
