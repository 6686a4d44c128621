"""A checkpoint knows what it is: who loads it need say nothing, and may say nothing else."""

import socket
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
from anomalib.models import Padim, get_model
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import Resize
from trainings import assert_same_state, ccl, data, engine, last_checkpoint

from anomalib_ccl import CCL
from anomalib_ccl.errors import InputError
from anomalib_ccl.training.post_processor import LimitPostProcessor

# Nothing of it is a default, nor are the mean and standard deviation of this backbone.
TRAINED: dict[str, Any] = {
    "backbone": "test_efficientnet",
    "image_size": (64, 96),
    "memory": 10,
    "research": {"projection": "light", "noise_probability": 0.1, "temperature": 0.1},
}
# One that is given spares the tests a wide_resnet50_2.
SAME = {"backbone": TRAINED["backbone"], "visualizer": False}


class Run(NamedTuple):
    """A model as its training left it, its checkpoint, and its scores of some images."""

    model: CCL
    checkpoint: Path
    scores: torch.Tensor


def predicted(model: CCL, root: Path, folder: Path, checkpoint: Path | None = None) -> torch.Tensor:
    (*batches,) = engine(folder).predict(model, data_path=root / "brick/test/good", ckpt_path=checkpoint)
    return torch.cat([batch.pred_score.flatten() for batch in batches])


def trained_run(root: Path, folder: Path, **arguments: Any) -> Run:
    model = ccl(**{**TRAINED, **arguments})
    engine(folder, max_epochs=1, limit_val_batches=0).fit(model, datamodule=data(root))
    return Run(model, last_checkpoint(folder), predicted(model, root, folder))


@pytest.fixture(scope="module")
def run(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained_run(sample_root, tmp_path_factory.mktemp("run"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at the first attempt to reach a hub, which is not told to be off."""

    def refuse(*args: Any) -> None:
        pytest.fail(f"asked for {args}")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("way", ["trainer", "load_from_checkpoint", "get_model"])
def test_a_model_made_without_arguments_predicts_as_the_trained_one(
    way: str, run: Run, sample_root: Path, tmp_path: Path
) -> None:
    path = run.checkpoint
    if way == "load_from_checkpoint":
        model, path = CCL.load_from_checkpoint(path), None
    else:
        model = CCL(visualizer=False) if way == "trainer" else get_model({"class_path": "CCL"})
    torch.testing.assert_close(predicted(model, sample_root, tmp_path, path), run.scores)
    assert_same_state(model, run.model)
    assert {name: model.hparams[name] for name in TRAINED} == TRAINED
    assert model.model.noise_probability == 0.1
    assert model.loss.local.temperature == 0.1
    assert tuple(model.input_size) == (64, 96)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("backbone", [None, TRAINED["backbone"]])
def test_training_goes_on_with_the_network_of_the_checkpoint(
    run: Run, backbone: str | None, sample_root: Path, tmp_path: Path
) -> None:
    model = CCL(backbone, visualizer=False)
    more = engine(tmp_path, max_epochs=2, limit_val_batches=0)
    more.fit(model, datamodule=data(sample_root), ckpt_path=run.checkpoint)
    teacher, expected = model.model.network.teacher, run.model.model.network.teacher.state_dict()
    assert teacher.backbone == TRAINED["backbone"]
    assert all(torch.equal(value, expected[name]) for name, value in teacher.state_dict().items())
    assert_same_state(CCL.load_from_checkpoint(more.best_model_path), model)
    assert not torch.equal(model.model.calibration.prototypes, run.model.model.calibration.prototypes)


CONTRADICTIONS: dict[str, tuple[Any, str]] = {
    "backbone": ("resnet18", "backbone='test_efficientnet', not backbone='resnet18'"),
    "image_size": ([64, 64], "image_size=(64, 96), not image_size=[64, 64]"),
    "memory": (0, "memory=10, not memory=0"),
    "tiles": ((1, 2), "tiles=(1, 1), not tiles=(1, 2)"),
    "research": ({"projection": "standard"}, "projection='light', not projection='standard'"),
    "calibrate": (False, "calibrate=True, not calibrate=False"),
    "pre_processor": (False, "pre_processor=Compose( Resize(size=[64, 96]"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_argument_that_contradicts_the_checkpoint_is_refused(name: str, run: Run) -> None:
    value, message = CONTRADICTIONS[name]
    with pytest.raises(InputError, match=r"(model\.ckpt|the checkpoint) was trained with") as refused:
        CCL.load_from_checkpoint(run.checkpoint, **{name: value})
    assert message in str(refused.value)


@pytest.mark.parametrize("how", ["fit", "train", "validate", "test", "predict"])
def test_contradiction_is_refused_whatever_the_checkpoint_is_for(
    how: str, run: Run, sample_root: Path, tmp_path: Path
) -> None:
    """A default that was given is a value like any other."""
    model, use = CCL(**SAME, research={"projection": "standard"}), {"datamodule": data(sample_root)}
    with pytest.raises(InputError, match=r"model\.ckpt was trained with projection='light', not projection='standard'"):
        getattr(engine(tmp_path, max_epochs=1), how)(model=model, ckpt_path=run.checkpoint, **use)


def test_what_does_not_change_the_network_may_differ(run: Run, sample_root: Path, tmp_path: Path) -> None:
    research = {"local_weight": 0.0, "global_weight": 2.0, "losses": "released", "schedule": "cosine"}
    other = {
        "class_labels": "pseudo",
        "n_pseudo_classes": 7,
        "feature_cache": str(tmp_path / "cache"),
        "backbone_weights": "absent.pth",
        "false_alarm_rate": 0.01,
    }
    model = CCL(TRAINED["backbone"], **other, research=research, visualizer=False)
    torch.testing.assert_close(predicted(model, sample_root, tmp_path, run.checkpoint), run.scores)
    loaded = CCL.load_from_checkpoint(run.checkpoint, **other, research=research)
    for changed in (model, loaded):
        assert {name: changed.hparams[name] for name in other} == other
        assert changed.hparams["research"] == {**TRAINED["research"], **research}
        assert changed.loss.global_weight == 2


@pytest.mark.parametrize("way", ["trainer", "load_from_checkpoint"])
@pytest.mark.parametrize(
    "component", [{"pre_processor": False}, {"post_processor": False}, {"calibrate": False, "memory": None}], ids=str
)
def test_what_was_switched_off_stays_off(
    component: dict[str, Any], way: str, sample_root: Path, tmp_path: Path
) -> None:
    run = trained_run(sample_root, tmp_path / "run", image_size=(64, 64), **component)
    if way == "trainer":
        scores = predicted(CCL(**SAME), sample_root, tmp_path, run.checkpoint)
    else:
        scores = predicted(CCL.load_from_checkpoint(run.checkpoint, visualizer=False), sample_root, tmp_path)
    torch.testing.assert_close(scores, run.scores)


def test_pre_processor_of_ones_own_is_restored_and_compared(sample_root: Path, tmp_path: Path) -> None:
    run = trained_run(sample_root, tmp_path / "run", pre_processor=PreProcessor(Resize((32, 64))))
    for model in (CCL(**SAME), CCL(pre_processor=PreProcessor(Resize((32, 64))), **SAME)):
        torch.testing.assert_close(predicted(model, sample_root, tmp_path, run.checkpoint), run.scores)
    message = r"pre_processor=Resize\(size=\[32, 64\].*, not pre_processor=Resize\(size=\[64, 64\]"
    with pytest.raises(InputError, match=message):
        CCL.load_from_checkpoint(run.checkpoint, pre_processor=PreProcessor(Resize((64, 64))))


def test_post_processor_that_was_given_keeps_its_settings(run: Run) -> None:
    assert isinstance(CCL.load_from_checkpoint(run.checkpoint).post_processor, LimitPostProcessor)
    post_processor = PostProcessor(enable_normalization=False, image_sensitivity=0.9)
    loaded = CCL.load_from_checkpoint(run.checkpoint, post_processor=post_processor)
    assert loaded.post_processor.image_sensitivity == 0.9
    assert not loaded.post_processor.enable_normalization
    assert CCL.load_from_checkpoint(run.checkpoint, post_processor=False).post_processor is None


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"no checkpoint at .*bad\.ckpt; `anomalib train` writes one to"),
        ("truncated", r"bad\.ckpt is not a checkpoint, or a damaged one"),
        ("export", r"bad\.ckpt is not a checkpoint, or a damaged one"),
        ("weights", r"bad\.ckpt is not the checkpoint of a CCL model"),
    ],
)
def test_file_that_is_no_checkpoint_is_named(kind: str, message: str, run: Run, tmp_path: Path) -> None:
    path, contents = tmp_path / "bad.ckpt", run.checkpoint.read_bytes()
    if kind == "truncated":
        path.write_bytes(contents[: len(contents) // 2])
    elif kind == "export":
        run.model.to_torch(tmp_path).replace(path)
    elif kind == "weights":
        torch.save(run.model.model.network.teacher.state_dict(), path)
    with pytest.raises(InputError, match=message):
        CCL.load_from_checkpoint(path)


def test_checkpoint_of_another_model_is_refused_by_the_trainer_too(sample_root: Path, tmp_path: Path) -> None:
    path, weights = tmp_path / "bad.ckpt", Padim("resnet18", pre_trained=False).state_dict()
    torch.save({"state_dict": weights, "hyper_parameters": {}, "pytorch-lightning_version": "2.6.0"}, path)
    with pytest.raises(InputError, match=r"bad\.ckpt is not the checkpoint of a CCL model"):
        predicted(CCL(**SAME), sample_root, tmp_path, path)


def test_checkpoint_of_a_gpu_is_read_where_there_is_none(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
        torch.save(torch.load(run.checkpoint, weights_only=True), tmp_path / "gpu.ckpt")
    assert_same_state(CCL.load_from_checkpoint(tmp_path / "gpu.ckpt"), run.model)


def test_weights_of_the_teacher_come_from_their_file_at_the_first_training_and_then_from_the_checkpoint(
    sample_root: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "backbone.pth"
    torch.save(timm.create_model("test_efficientnet").state_dict(), weights)
    model, quick = ccl(backbone_weights=weights, calibrate=False), {"max_epochs": 1, "limit_val_batches": 0}
    engine(tmp_path, **quick).fit(model, datamodule=data(sample_root))
    weights.unlink()
    assert_same_state(CCL.load_from_checkpoint(last_checkpoint(tmp_path)), model)
    for arguments, message in (
        ({"backbone": "resnet18", "pre_trained": True}, "'resnet18' cannot be downloaded"),
        ({"backbone_weights": "absent.pth"}, r"backbone weights not found: absent\.pth"),
    ):
        with pytest.raises(InputError, match=message):
            engine(tmp_path, **quick).fit(ccl(**arguments), datamodule=data(sample_root))
