"""CCL in anomalib's engine: what training does and does not change, how long it takes, and what it refuses."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.callbacks import TilerConfigurationCallback
from anomalib.data import Folder, MVTecAD
from anomalib.engine import Engine
from lightning import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler
from trainings import SMALL, Steps, StopAtOnce, assert_calibrated_for_its_weights, ccl, data, engine

from anomalib_ccl import CCL
from anomalib_ccl.errors import InputError
from anomalib_ccl.model.reconstruction.dinomaly import Dinomaly
from anomalib_ccl.model.reconstruction.recipe import SCHEDULES


@pytest.fixture(scope="module")
def trained(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, CCL, Steps]:
    """A training of six epochs, of which no step is checked alone."""
    model, steps = ccl(), Steps()
    model.untrained_teacher = {n: v.clone() for n, v in model.model.network.teacher.state_dict().items()}
    run = engine(tmp_path_factory.mktemp("trained"), steps, max_epochs=6, check_val_every_n_epoch=6)
    run.fit(model, datamodule=data(sample_root))
    return run, model, steps


def test_training_lowers_the_total_of_all_loss_terms(trained: tuple[Engine, CCL, Steps]) -> None:
    run, _, steps = trained
    terms = [f"train_loss_{name}" for name in ("reconstruction", "local", "global")]
    for losses in steps.losses:
        assert losses["train_loss"] == pytest.approx(sum(losses[name] for name in terms), rel=1e-4)
        assert all(losses[name] > 0 for name in terms)
    assert steps.losses[-1]["train_loss"] < 0.8 * steps.losses[0]["train_loss"]
    last_epoch = [losses["train_loss"] for losses in steps.losses[-3:]]
    assert run.trainer.callback_metrics["train_loss_epoch"].item() == pytest.approx(sum(last_epoch) / 3, rel=1e-4)


def test_teacher_is_bit_identical_after_training_and_has_no_optimizer_state(
    trained: tuple[Engine, CCL, Steps],
) -> None:
    run, model, _ = trained
    teacher = model.model.network.teacher
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, model.untrained_teacher[name]), name
    optimized = {id(p) for group in run.trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for p in model.parameters() if p.requires_grad}
    assert not optimized & {id(p) for p in teacher.parameters()}
    assert all(p.grad is None for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())


def test_learning_rates_and_gradient_norm_are_the_papers(trained: tuple[Engine, CCL, Steps]) -> None:
    _, _, steps = trained
    switch = int(0.8 * len(steps.rates))
    assert steps.rates[: switch - 1] == [[0.005, 0.001]] * (switch - 1)
    assert all(rates == pytest.approx([0.0005, 0.0001]) for rates in steps.rates[switch:])
    assert max(steps.norms) == pytest.approx(5, rel=1e-3)


def test_gradients_are_clipped_as_is_given(sample_root: Path, tmp_path: Path) -> None:
    norms = {}
    for name, given in {
        "not at all": {"gradient_clip_val": 0.0},
        "by no value": {"gradient_clip_algorithm": "value"},
        "by a norm of its own": {"gradient_clip_val": 1.0},
        "by the norm": {"gradient_clip_algorithm": "norm"},
    }.items():
        model, steps = ccl(calibrate=False, research={"local_weight": 1000.0}), Steps()  # single gradients exceed 5 too
        run = engine(tmp_path, steps, max_epochs=1, limit_train_batches=1, limit_val_batches=0, **given)
        run.fit(model, datamodule=data(sample_root))
        (norms[name],) = steps.norms
    free = norms["not at all"]
    assert [*norms.values()] == pytest.approx([free, free, 1, 5], rel=1e-3)


@pytest.mark.parametrize("steps", [10, 100, math.inf])
def test_schedules_are_their_formulas(steps: float) -> None:
    for name, share in {
        "step": lambda step: 1.0 if step < 0.8 * steps else 0.1,
        "cosine": lambda step: 1.0 if math.isinf(steps) else (1 + math.cos(math.pi * step / steps)) / 2,
    }.items():
        optimizer = SGD(torch.nn.Linear(1, 1).parameters(), lr=2.0)
        schedule = SCHEDULES[name](optimizer, steps)
        for step in range(int(min(steps, 10))):
            assert optimizer.param_groups[0]["lr"] == pytest.approx(2 * share(step))
            optimizer.step()
            schedule.step()


@pytest.mark.parametrize("schedule", [*SCHEDULES.values(), Dinomaly.recipe.schedule])
def test_rates_of_a_training_that_goes_on_are_those_of_its_own_length(schedule: Callable[..., LRScheduler]) -> None:
    optimizer = SGD(torch.nn.Linear(1, 1).parameters(), lr=2.0)
    shorter, whole, longer = (schedule(optimizer, steps) for steps in (10, 30, 30))
    optimizer.step()
    for _ in range(10):
        shorter.step()
        whole.step()
    longer.load_state_dict(shorter.state_dict())
    for each in (whole, longer):
        each.step()
    assert longer.get_last_lr() == whole.get_last_lr() != shorter.get_last_lr()


DINOMALY = {"reconstruction": "dinomaly", "backbone": "vit_tiny_patch16_224"}


@pytest.mark.parametrize(
    ("network", "given", "length"),
    [
        ({}, {}, (100, -1)),
        ({}, {"max_epochs": 1000}, (1000, -1)),
        ({}, {"max_epochs": 3}, (3, -1)),
        ({}, {"max_epochs": -1, "max_steps": 2}, (-1, 2)),
        ({}, {"max_time": {"hours": 1}}, (-1, -1)),
        ({"recipe": "memory"}, {"max_epochs": 3}, (1, -1)),
        (DINOMALY, {}, (-1, 5000)),
        (DINOMALY, {"max_steps": 3}, (-1, 3)),
    ],
)
def test_training_is_as_long_as_given_or_else_as_the_recipe_of_the_network(
    network: dict[str, Any], given: dict[str, Any], length: tuple[int, int], sample_root: Path, tmp_path: Path
) -> None:
    model = ccl(**network, **({} if network.get("recipe") else {"calibrate": False}))
    run = engine(tmp_path, StopAtOnce(), limit_val_batches=0, **given)
    run.fit(model, datamodule=data(sample_root))
    assert (run.trainer.max_epochs, run.trainer.max_steps) == length
    if length[1] > 0:
        assert model.progress == 1 / length[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"precision": "16-true"}, "precision='16-true': CCL computes in '32-true', 'bf16-mixed' or '16-mixed'"),
        ({"precision": "bf16-true"}, "precision='bf16-true': CCL computes in"),
        ({"precision": "64-true"}, "precision='64-true': CCL computes in"),
        ({"dtype": torch.float16}, "the weights are torch.float16, but CCL computes in torch.float32; call"),
        ({"callbacks": lambda: TilerConfigurationCallback(enable=True)}, r"TilerConf.* CCL's own tiles=\[2, 3\]"),
        ({"callbacks": EMAWeightAveraging}, "EMAWeightAveraging would give CCL other weights than those"),
        ({"callbacks": lambda: StochasticWeightAveraging(swa_lrs=1e-3)}, "StochasticWeightAveraging would give CCL"),
    ],
)
def test_what_would_end_without_a_calibrated_model_is_refused_before_the_first_step(
    given: dict[str, Any], message: str, sample_root: Path, tmp_path: Path
) -> None:
    given, model = dict(given), ccl().to(given.get("dtype"))
    given.pop("dtype", None)
    steps: list[Callback] = [Steps(), *([given.pop("callbacks")()] if "callbacks" in given else [])]
    with pytest.raises(InputError, match=message):
        engine(tmp_path, *steps, max_epochs=1, **given).fit(model, datamodule=data(sample_root))
    assert steps[0].losses == []


def test_mixed_precision_begins_with_the_same_loss(
    trained: tuple[Engine, CCL, Steps], sample_root: Path, tmp_path: Path
) -> None:
    steps = Steps()
    run = engine(tmp_path, steps, max_epochs=1, precision="bf16-mixed", limit_val_batches=0)
    run.fit(ccl(calibrate=False), datamodule=data(sample_root))
    assert steps.losses[0]["train_loss_step"] == pytest.approx(trained[2].losses[0]["train_loss_step"], rel=0.02)


def test_a_second_training_of_an_engine_is_refused_or_goes_on(sample_root: Path, tmp_path: Path) -> None:
    """anomalib's Engine keeps its Trainer, which is at its end."""
    others = data(sample_root, ["brick", "grass"])
    for limit in ("max_steps", "max_epochs"):
        run, first, second = engine(tmp_path / limit, **{limit: 1}, limit_val_batches=0), ccl(), ccl()
        run.fit(first, datamodule=data(sample_root))
        message = rf"has finished its training of 1 epochs .* raise {limit}, or make a new Engine for another training"
        with pytest.raises(InputError, match=message):
            run.fit(second, datamodule=others)
        assert not second.model.calibration.is_calibrated
    new = engine(tmp_path, max_epochs=1, limit_val_batches=0)
    new.fit(first, datamodule=others)
    assert first.class_names == ["brick", "grass"]
    assert_calibrated_for_its_weights(first, others)


def test_a_plain_category_trains_as_one_class_with_one_warning(
    sample_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = Steps()
    with caplog.at_level(logging.INFO, "anomalib_ccl"):
        run = engine(tmp_path, steps, max_epochs=2, limit_val_batches=0)
        run.fit(ccl(), datamodule=MVTecAD(sample_root, "brick", train_batch_size=4, num_workers=0))
    assert sum("All training images are of one class" in message for message in caplog.messages) == 1
    assert not any("Pseudo-classes found" in message for message in caplog.messages)
    assert steps.losses[-1]["train_loss_local"] == steps.losses[-1]["train_loss_global"] == 0


def test_a_folder_of_mixed_products_trains_with_the_classes_of_its_sub_folders(
    sample_root: Path, tmp_path: Path
) -> None:
    for product in ("brick", "retina"):
        target = tmp_path / "normal" / product
        target.mkdir(parents=True)
        for image in (sample_root / product / "train/good").iterdir():
            (target / image.name).write_bytes(image.read_bytes())
    images = Folder("mixed", "normal", tmp_path, train_batch_size=6, num_workers=0, val_split_mode="from_train", seed=0)
    model, steps = ccl(class_labels="folder"), Steps()
    engine(tmp_path, steps, max_epochs=1).fit(model, datamodule=images)
    assert model.class_names == ["brick", "retina"]
    assert steps.losses[-1]["train_loss_local"] > 0


def test_what_is_said_of_a_training_is_true(
    sample_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = engine(tmp_path, max_epochs=2)
    run.fit(ccl(), datamodule=data(sample_root))
    lines = capsys.readouterr().out.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("2 products"))
    assert lines[begin] == "2 products (brick, retina); images: 12 to train, 12 to validate, 12 to test."
    assert lines[begin + 1].startswith(f"2 epochs at 64 × 64 pixels; results go to {tmp_path}")
    said = [line.split(",")[0] for line in lines if line.startswith("epoch")]
    assert said == ["epoch 1 of 2", "epoch 2 of 2"]
    assert lines[-2] == f"Trained and calibrated: {run.best_model_path}"
    assert lines[-1].startswith(f"Next: anomalib predict --model CCL --ckpt_path {run.best_model_path} ")
    engine(tmp_path, max_epochs=1, limit_val_batches=0).fit(ccl(calibrate=False), datamodule=data(sample_root))
    assert "Trained: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"research": {"temperature": 0}}, "temperature must be greater than 0, got 0"),
        ({"research": {"local_weight": -1}}, "local_weight must not be negative, got -1; 0 switches the loss off"),
        ({"research": {"losses": "official"}}, "unknown losses 'official'; choose one of paper, released"),
        ({"research": {"schedule": "linear"}}, "unknown schedule 'linear'; choose one of step, cosine"),
        ({"research": {"projektion": "none"}}, "research has no setting 'projektion'; did you mean 'projection'"),
        ({"research": {"local_weight": "a"}}, "research.local_weight must be a number, got 'a'"),
        ({"research": {"skip": "no"}}, "research.skip must be true or false, got 'no'"),
        ({"research": {"reconstruction_args": 3}}, "research.reconstruction_args must be arguments by their names"),
        ({"research": "x"}, "research must be settings by their names, such as {'local_weight': 0}, got 'x'"),
        ({"recipe": "best"}, "unknown recipe 'best'; choose one of paper, recommended, memory"),
        ({"recipe": "memory", "memory": 0}, "memory must be a number of vectors from 0 on, from 1 on without"),
        ({"memory": 1.5}, "memory must be a number of vectors from 0 on, .* got 1.5"),
        ({"false_alarm_rate": "0.1"}, r"false_alarm_rate must lie in \(0, 0.5\], got '0.1'"),
        ({"false_alarm_rate": 0}, r"false_alarm_rate must lie in \(0, 0.5\], got 0"),
        ({"calibrate": False, "false_alarm_rate": 0.1}, "memory and false_alarm_rate need calibrate=True"),
        ({"image_size": 256}, "image_size must be two whole numbers, the height and the width in pixels, got 256"),
        ({"image_size": (64,)}, r"image_size must be two whole numbers, .* got \(64,\)"),
        ({"image_size": (64.5, 64)}, r"image_size must be two whole numbers, .* got \(64.5, 64\)"),
        ({"image_size": []}, r"image_size must be two whole numbers, .* got \[\]"),
        ({"image_size": (4, 4)}, "image_size must be multiples of 32 pixels and at least 32, got 4 × 4"),
        ({"class_labels": "guess"}, "unknown class_labels 'guess'; choose one of auto, category, folder, pseudo"),
        ({"n_pseudo_classes": 0}, "n_pseudo_classes must be 'auto' or a whole number from 1 on, got 0"),
        ({"n_pseudo_classes": True}, "n_pseudo_classes must be 'auto' or a whole number from 1 on, got True"),
        ({"backbone": "resnet"}, "unknown backbone 'resnet'"),
    ],
)
def test_bad_arguments_are_named_with_the_way_out(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CCL(**{**SMALL, **argument})
