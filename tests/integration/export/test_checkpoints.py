"""A checkpoint knows what it is: who loads it need say nothing, and may say nothing else."""

import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from anomalib.deploy import TorchInferencer
from anomalib.engine import Engine
from anomalib.models import Padim
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from lightning import seed_everything
from torchvision.transforms.v2 import Resize

from anomalib_ccl import CCL, MultiCategory

# Nothing of it is a default, nor are the mean and standard deviation of this backbone.
TRAINED = {
    "backbone": "tf_efficientnet_lite0",
    "image_size": (64, 96),
    "projection": "light",
    "noise_probability": 0.1,
    "temperature": 0.1,
}
# One that is given spares the tests a wide_resnet50_2.
SAME = {"backbone": TRAINED["backbone"], "visualizer": False}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


class Run(NamedTuple):
    """A model as its training left it, its checkpoint, and its scores of some images."""

    model: CCL
    checkpoint: Path
    scores: torch.Tensor


def make_data(root: Path) -> MultiCategory:
    return MultiCategory(root=root, categories=["brick", "grass"], train_batch_size=6, num_workers=0)


def predicted(model: CCL, root: Path, folder: Path, checkpoint: Path | None = None) -> torch.Tensor:
    engine = Engine(default_root_dir=folder, **QUIET)
    (*batches,) = engine.predict(model, data_path=root / "brick/test", ckpt_path=checkpoint)
    return torch.cat([batch.pred_score.flatten() for batch in batches])


def trained_run(root: Path, folder: Path, **arguments: Any) -> Run:
    seed_everything(0)
    model = CCL(**{**TRAINED, "pre_trained": False, "visualizer": False, **arguments})
    engine = Engine(default_root_dir=folder, max_epochs=1, **QUIET)
    engine.fit(model, datamodule=make_data(root))
    return Run(model, Path(engine.best_model_path), predicted(model, root, folder))


@pytest.fixture(scope="module")
def run(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained_run(sample_root, tmp_path_factory.mktemp("run"))


@pytest.fixture
def edited(run: Run, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], Any]], Path]:
    """``edited(change)``: a copy of the checkpoint that was changed."""

    def edit(change: Callable[[dict[str, Any]], Any]) -> Path:
        checkpoint = torch.load(run.checkpoint, weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, tmp_path / "edited.ckpt")
        return tmp_path / "edited.ckpt"

    return edit


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at the first attempt to reach a hub, which is not told to be off."""

    def refuse(*args: Any) -> None:
        pytest.fail(f"asked for {args}")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("no_network")
def test_model_made_without_arguments_predicts_as_the_trained_one(run: Run, sample_root: Path, tmp_path: Path) -> None:
    model = CCL(visualizer=False)
    torch.testing.assert_close(predicted(model, sample_root, tmp_path, run.checkpoint), run.scores)
    assert {name: model.hparams[name] for name in TRAINED} == {**TRAINED, "temperature": 0.05}
    assert model.model.noise_probability == TRAINED["noise_probability"]
    assert tuple(model.input_size) == TRAINED["image_size"]


@pytest.mark.usefixtures("no_network")
def test_loaded_model_needs_no_arguments_and_predicts_as_the_trained_one(
    run: Run, sample_root: Path, tmp_path: Path
) -> None:
    model = CCL.load_from_checkpoint(run.checkpoint)
    torch.testing.assert_close(predicted(model, sample_root, tmp_path), run.scores)
    assert {name: model.hparams[name] for name in TRAINED} == TRAINED


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("backbone", [None, TRAINED["backbone"]])
def test_training_goes_on_with_the_network_of_the_checkpoint(
    run: Run, backbone: str | None, sample_root: Path, tmp_path: Path
) -> None:
    model = CCL(backbone, visualizer=False)
    engine = Engine(default_root_dir=tmp_path, max_epochs=2, **QUIET)
    engine.fit(model, datamodule=make_data(sample_root), ckpt_path=run.checkpoint)
    teacher = model.model.network.teacher
    assert teacher.backbone == TRAINED["backbone"]
    expected = run.model.model.network.teacher.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in teacher.state_dict().items())
    again = CCL.load_from_checkpoint(engine.best_model_path, visualizer=False)
    scores = predicted(again, sample_root, tmp_path)
    torch.testing.assert_close(scores, predicted(model, sample_root, tmp_path))
    assert not torch.allclose(scores, run.scores)


CONTRADICTIONS = {
    "backbone": ("resnet18", "backbone='tf_efficientnet_lite0', not backbone='resnet18'"),
    "image_size": ((64, 64), "image_size=(64, 96), not image_size=(64, 64)"),
    "projection": ("standard", "projection='light', not projection='standard'"),
    "calibrate": (False, "calibrate=True, not calibrate=False"),
    "pre_processor": (False, "pre_processor=Compose( Resize(size=[64, 96]"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_argument_that_contradicts_the_checkpoint_is_refused(name: str, run: Run) -> None:
    value, message = CONTRADICTIONS[name]
    with pytest.raises(ValueError, match=r"(model\.ckpt|the checkpoint) was trained with") as refused:
        CCL.load_from_checkpoint(run.checkpoint, **{name: value})
    assert message in str(refused.value)


def test_default_that_was_given_is_refused_like_any_other_value(run: Run, sample_root: Path, tmp_path: Path) -> None:
    model = CCL(projection="standard", **SAME)
    with pytest.raises(ValueError, match="trained with projection='light', not projection='standard'"):
        predicted(model, sample_root, tmp_path, run.checkpoint)


@pytest.mark.parametrize("how", ["fit", "train", "validate", "test", "predict", "export"])
def test_contradiction_is_refused_whatever_the_checkpoint_is_for(
    how: str, run: Run, sample_root: Path, tmp_path: Path
) -> None:
    model = CCL(projection="standard", **SAME)
    engine = Engine(default_root_dir=tmp_path, max_epochs=1, **QUIET)
    data = {"export_type": "torch"} if how == "export" else {"datamodule": make_data(sample_root)}
    with pytest.raises(ValueError, match=r"model\.ckpt was trained with projection='light', not projection='standard'"):
        getattr(engine, how)(model=model, ckpt_path=run.checkpoint, **data)
    assert not list(tmp_path.rglob("*.pt"))


def test_all_contradictions_stand_in_one_message(run: Run) -> None:
    message = (
        r"trained with backbone='tf_efficientnet_lite0' and projection='light', not backbone='x' and projection='y'"
    )
    with pytest.raises(ValueError, match=message):
        CCL.load_from_checkpoint(run.checkpoint, backbone="x", projection="y", temperature=0.2)


def test_what_does_not_change_the_network_may_differ(run: Run, sample_root: Path, tmp_path: Path) -> None:
    other = {
        "noise_probability": 0.5,
        "local_weight": 0.0,
        "global_weight": 2.0,
        "temperature": 0.2,
        "num_negatives": 3,
        "losses": "released",
        "schedule": "cosine",
        "torch_compile": True,
        "class_labels": "pseudo",
        "n_pseudo_classes": 7,
        "feature_cache": str(tmp_path),
        "backbone_weights": "absent.pth",
        "pre_trained": True,
        "visualizer": False,
    }
    model = CCL(TRAINED["backbone"], **other)
    torch.testing.assert_close(predicted(model, sample_root, tmp_path, run.checkpoint), run.scores)
    assert {name: model.hparams[name] for name in other if name != "visualizer"} == {
        name: value for name, value in other.items() if name != "visualizer"
    }
    assert CCL.load_from_checkpoint(run.checkpoint, **other).hparams["noise_probability"] == 0.5


@pytest.mark.parametrize("way", ["trainer", "load_from_checkpoint"])
def test_checkpoints_of_earlier_versions_load(
    way: str, edited: Callable[..., Path], run: Run, sample_root: Path, tmp_path: Path
) -> None:
    def as_before(checkpoint: dict[str, Any]) -> None:
        kept = ("backbone", "image_size", "projection")
        checkpoint["hyper_parameters"] = {name: checkpoint["hyper_parameters"][name] for name in kept}
        for name in ("anomalib_pre_processor_config", "anomalib_components_enabled"):
            del checkpoint[name]

    path = edited(as_before)
    model = CCL(visualizer=False) if way == "trainer" else CCL.load_from_checkpoint(path, visualizer=False)
    scores = predicted(model, sample_root, tmp_path, path if way == "trainer" else None)
    torch.testing.assert_close(scores, run.scores)


def test_checkpoint_from_before_an_argument_has_what_was_done_then(edited: Callable[..., Path]) -> None:
    path = edited(lambda checkpoint: checkpoint["hyper_parameters"].pop("projection"))
    with pytest.raises(ValueError, match="trained with projection='standard', not projection='none'"):
        CCL.load_from_checkpoint(path, projection="none")


@pytest.mark.parametrize("given", ["trainer", "load_from_checkpoint"])
@pytest.mark.parametrize("component", ["pre_processor", "post_processor"])
def test_component_that_was_switched_off_stays_off(
    component: str, given: str, sample_root: Path, tmp_path: Path
) -> None:
    run = trained_run(sample_root, tmp_path / "run", image_size=(64, 64), **{component: False})
    if given == "trainer":
        scores = predicted(CCL(**SAME), sample_root, tmp_path, run.checkpoint)
    else:
        scores = predicted(CCL.load_from_checkpoint(run.checkpoint, visualizer=False), sample_root, tmp_path)
    torch.testing.assert_close(scores, run.scores)


def test_pre_processor_of_ones_own_is_restored_and_compared(sample_root: Path, tmp_path: Path) -> None:
    run = trained_run(sample_root, tmp_path / "run", pre_processor=PreProcessor(Resize((32, 64))))
    torch.testing.assert_close(predicted(CCL(**SAME), sample_root, tmp_path, run.checkpoint), run.scores)
    same = CCL(pre_processor=PreProcessor(Resize((32, 64))), **SAME)
    torch.testing.assert_close(predicted(same, sample_root, tmp_path, run.checkpoint), run.scores)
    message = r"pre_processor=Resize\(size=\[32, 64\].*, not pre_processor=Resize\(size=\[64, 64\]"
    with pytest.raises(ValueError, match=message):
        CCL.load_from_checkpoint(run.checkpoint, pre_processor=PreProcessor(Resize((64, 64))))


def test_post_processor_that_was_given_keeps_its_settings(run: Run) -> None:
    post_processor = PostProcessor(enable_normalization=False, image_sensitivity=0.9)
    loaded = CCL.load_from_checkpoint(run.checkpoint, post_processor=post_processor)
    assert loaded.post_processor.image_sensitivity == 0.9
    assert not loaded.post_processor.enable_normalization
    assert CCL.load_from_checkpoint(run.checkpoint, post_processor=False).post_processor is None


def test_false_alarm_rate_that_was_given_is_exported(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    path = Engine(default_root_dir=tmp_path, **QUIET).export(
        CCL(TRAINED["backbone"], false_alarm_rate=0.3), "torch", export_root=tmp_path, ckpt_path=run.checkpoint
    )
    assert TorchInferencer(path, device="cpu").model.model.calibration.false_alarm_rate == 0.3


def test_false_alarm_rate_needs_a_checkpoint_with_calibration(edited: Callable[..., Path]) -> None:
    path = edited(lambda checkpoint: checkpoint["hyper_parameters"].update(calibrate=False))
    with pytest.raises(ValueError, match=r"trained with calibrate=False, not false_alarm_rate=0\.1"):
        CCL.load_from_checkpoint(path, false_alarm_rate=0.1)


def write_bad_file(kind: str, run: Run, path: Path) -> None:
    contents = run.checkpoint.read_bytes()
    if kind == "folder":
        path.mkdir()
    elif kind == "weights":
        torch.save(run.model.model.network.teacher.state_dict(), path)
    elif kind == "export":
        run.model.to_torch(path.parent).replace(path)
    elif kind == "other":
        torch.save({"state_dict": Padim("resnet18", pre_trained=False).state_dict(), "hyper_parameters": {}}, path)
        torch.save({**torch.load(path), "pytorch-lightning_version": "2.6.0"}, path)
    elif kind != "missing":
        path.write_bytes({"empty": b"", "truncated": contents[: len(contents) // 2], "text": b"no weights"}[kind])


@pytest.mark.parametrize("way", ["trainer", "load_from_checkpoint"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"no checkpoint at .*bad\.ckpt; `anomalib train` writes one to"),
        ("folder", r"bad\.ckpt is a folder; give the checkpoint itself"),
        ("empty", r"bad\.ckpt is not a checkpoint, or a damaged one"),
        ("truncated", r"bad\.ckpt is not a checkpoint, or a damaged one"),
        ("text", r"bad\.ckpt is not a checkpoint, or a damaged one"),
        ("weights", r"bad\.ckpt is not the checkpoint of a training"),
        ("export", r"bad\.ckpt is not a checkpoint, or a damaged one"),
        ("other", r"bad\.ckpt is the checkpoint of another model than CCL"),
    ],
)
def test_file_that_is_no_checkpoint_is_named(
    way: str, kind: str, message: str, run: Run, sample_root: Path, tmp_path: Path
) -> None:
    path, model = tmp_path / "bad.ckpt", CCL(**SAME)
    write_bad_file(kind, run, path)
    load = CCL.load_from_checkpoint if way != "trainer" else partial(predicted, model, sample_root, tmp_path)
    with pytest.raises((ValueError, OSError), match=message) as raised:
        load(path)
    assert "\n" not in str(raised.value)


def test_checkpoint_of_a_gpu_is_read_where_there_is_none(
    run: Run, sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
        torch.save(torch.load(run.checkpoint, weights_only=True), tmp_path / "gpu.ckpt")
    scores = predicted(CCL(**SAME), sample_root, tmp_path, tmp_path / "gpu.ckpt")
    torch.testing.assert_close(scores, run.scores)


def test_exported_torch_model_needs_no_gradient_and_leaves_the_model_trainable(
    run: Run, sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    before = [parameter.requires_grad for parameter in run.model.parameters()]
    inferencer = TorchInferencer(run.model.to_torch(tmp_path), device="cpu")
    prediction = inferencer.predict(sample_root / "brick/test/good/000.png")
    assert prediction.pred_score.numpy().size == 1
    assert prediction.anomaly_map.numpy().size == 64 * 96
    assert [parameter.requires_grad for parameter in run.model.parameters()] == before
    assert any(before)


@pytest.mark.parametrize("arguments", [{}, {"backbone_weights": "absent.pth"}], ids=["hub", "file"])
def test_weights_of_the_teacher_are_asked_for_when_a_training_starts(
    arguments: dict[str, str], sample_root: Path, tmp_path: Path
) -> None:
    model = CCL("resnet18", image_size=(64, 64), visualizer=False, **arguments)
    engine = Engine(default_root_dir=tmp_path, max_epochs=1, **QUIET)
    with pytest.raises(OSError, match=r"'resnet18' cannot be downloaded|backbone weights not found: absent\.pth"):
        engine.fit(model, datamodule=make_data(sample_root))
