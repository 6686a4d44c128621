"""CCL on each reconstruction network: what works for reverse distillation works for all.

A fourth network is one more row here. What other tests do with reverse distillation alone is not done twice.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from anomalib.deploy import CompressionType
from anomalib.engine import Engine
from lightning import Callback, seed_everything

from anomalib_ccl import CCL, MultiCategory

EXAMPLES = Path(__file__).parents[3] / "examples"
SIZE = (64, 64)
SINGLE_PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}
TWO_PROCESSES = ["--trainer.strategy=ddp", "--trainer.devices=2"]

# Arguments of CCL, and its own of a training on the command line.
NETWORKS: dict[str, dict[str, Any]] = {
    "reverse_distillation": {"reconstruction": "reverse_distillation", "backbone": "mobilenetv3_small_100"},
    "vit": {"reconstruction": "vit", "backbone": "test_vit"},
    "dinomaly": {"reconstruction": "dinomaly", "backbone": "vit_tiny_patch16_224", "recipe": "recommended"},
    "own": {
        "reconstruction": "own_network.PixelAutoencoder",
        "reconstruction_args": {"width": 8},
        "recipe": "recommended",
    },
}
COMMANDS: dict[str, list[str]] = {
    "vit": ["--model.class_labels=pseudo", "--model.n_pseudo_classes=2"],
    "dinomaly": ["--model.reconstruction_args.use_context_recentering=true", *TWO_PROCESSES],
}


class Losses(Callback):
    """Keep the losses of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.steps.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def data(root: Path) -> MultiCategory:
    return MultiCategory(root=root, categories=["brick", "retina"], train_batch_size=6, num_workers=0)


def fit(root: Path, folder: Path, epochs: int = 2, **arguments: Any) -> tuple[CCL, list[dict[str, float]], Path]:
    """Train, and give the model, the losses of its steps and its checkpoint."""
    checkpoint = arguments.pop("ckpt_path", None)
    seed_everything(0)
    model = CCL(**{"pre_trained": False, "visualizer": False, **arguments})
    losses = Losses()
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "max_epochs": epochs, "callbacks": [losses]}
    engine = Engine(default_root_dir=folder, **quiet)
    engine.fit(model, datamodule=data(root), ckpt_path=checkpoint)
    return model, losses.steps, Path(engine.best_model_path)


@pytest.mark.parametrize("network", NETWORKS)
def test_training_has_both_losses_a_calibration_and_a_checkpoint_that_is_found_again(
    network: str, sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    arguments = {**NETWORKS[network], "image_size": SIZE}
    model, steps, checkpoint = fit(sample_root, tmp_path, **arguments)
    for name in ("train_loss_reconstruction", "train_loss_local", "train_loss_global"):
        assert sum(step[name] for step in steps) > 0
    assert model.classes.names == ["brick", "retina"]
    assert model.model.calibration.is_calibrated

    torch.load(checkpoint, weights_only=True)
    loaded = CCL.load_from_checkpoint(checkpoint, visualizer=False)
    assert {name: loaded.hparams[name] for name in arguments} == arguments
    images = torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images).pred_score, model.eval()(images).pred_score)
        unknown = loaded.model.classify(torch.full((1, 3, *SIZE), 50.0))
    assert unknown.class_index.item() in (0, 1, 2)
    with pytest.raises(ValueError, match=r"trained with reconstruction=.*, not reconstruction='tree'"):
        CCL.load_from_checkpoint(checkpoint, reconstruction="tree")

    # The features from the disk are the same, and a model without arguments goes on with the network.
    _, cached, _ = fit(sample_root, tmp_path / "cached", feature_cache=tmp_path / "cache", **arguments)
    assert cached[0]["train_loss"] == pytest.approx(steps[0]["train_loss"], rel=1e-5)
    assert cached[-1]["train_loss"] == pytest.approx(steps[-1]["train_loss"], rel=0.2)
    resumed, _, _ = fit(sample_root, tmp_path / "on", 3, ckpt_path=checkpoint)
    assert type(resumed.model.network) is type(model.model.network)
    assert resumed.loss.temperature == model.model.network.recipe.temperature


class StopAtOnce(Callback):
    """End the training after its first step."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        trainer.should_stop = True


@pytest.mark.parametrize(("told", "steps"), [({}, 5000), ({"max_steps": 3}, 3)])
def test_dinomaly_trains_for_anomalibs_5000_steps_unless_told(
    sample_root: Path, tmp_path: Path, told: dict[str, int], steps: int
) -> None:
    model = CCL(**NETWORKS["dinomaly"], pre_trained=False, image_size=SIZE, visualizer=False)
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", callbacks=[StopAtOnce()], **told)
    engine.fit(model, datamodule=data(sample_root))
    assert (engine.trainer.max_epochs, engine.trainer.max_steps) == (-1, steps)
    assert model.progress == 1 / steps


@pytest.fixture(scope="module", params=COMMANDS)
def trained(
    request: pytest.FixtureRequest, sample_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, str]:
    """A network, the folder of a training on the command line, and what that printed."""
    name, folder = request.param, tmp_path_factory.mktemp("command")
    line = [
        *(str(Path(sys.executable).with_name("anomalib")), "train", "--model=CCL", "--model.pre_trained=false"),
        *(f"--model.{argument}={value}" for argument, value in NETWORKS[name].items()),
        *("--model.image_size=[64,64]", "--data=MultiCategory", f"--data.root={sample_root}"),
        *("--data.categories=[brick,retina]", "--data.train_batch_size=6", "--data.num_workers=0"),
        *("--trainer.max_epochs=1", "--trainer.accelerator=cpu", *COMMANDS[name]),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    return name, folder, output


@pytest.fixture(scope="module")
def model(trained: tuple[str, Path, str]) -> CCL:
    """The model that the training left, as anybody finds it again."""
    model = CCL.load_from_checkpoint(next(trained[1].rglob("v0/**/model.ckpt")), visualizer=False).eval()
    # A normalised score is clamped, and one that is clamped to 1 would agree with anything.
    model.post_processor.enable_normalization = False
    return model


@pytest.mark.slow
def test_command_line_trains_and_reports(trained: tuple[str, Path, str], model: CCL) -> None:
    name, _, output = trained
    assert output.count("Test results per category") == 1
    assert model.hparams["reconstruction"] == name
    assert model.classes.names == (["pseudo_0", "pseudo_1"] if name == "vit" else ["brick", "retina"])
    assert getattr(model.model.network, "use_context_recentering", True)
    assert len(model.model.calibration.prototypes) == 2


def assert_same(outputs: dict[str, np.ndarray], expected: Any, tolerance: float) -> None:
    for name in ("pred_score", "anomaly_map"):
        wanted = getattr(expected, name).squeeze().numpy()
        np.testing.assert_allclose(outputs[name].squeeze(), wanted, rtol=tolerance, atol=tolerance * wanted.max())


@pytest.fixture(scope="module")
def onnx(model: CCL, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in ONNX, from which its exports to OpenVINO begin; the slow part, and here done once for all."""
    path = model.to_onnx(tmp_path_factory.mktemp("onnx"))
    model.to_onnx = lambda *args, **kwargs: path  # type: ignore[method-assign]
    return path


def openvino_outputs(path: Path, pixels: torch.Tensor) -> dict[str, np.ndarray]:
    compiled = openvino.Core().compile_model(path, "CPU", SINGLE_PRECISION)
    values = compiled(pixels.numpy())
    return {output.get_any_name(): values[output] for output in compiled.outputs}


@pytest.mark.slow
def test_exports_give_the_engines_answer(model: CCL, onnx: Path, tmp_path: Path) -> None:
    pixels = torch.rand(1, 3, 80, 100, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(pixels)
    session = onnxruntime.InferenceSession(onnx)
    names = [output.name for output in session.get_outputs()]
    found = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
    assert_same(dict(zip(names, found, strict=True)), expected, 1e-3)
    for compression, tolerance in ((None, 1e-3), (CompressionType.FP16, 0.02)):
        path = model.to_openvino(tmp_path / str(compression), compression_type=compression)
        assert_same(openvino_outputs(path, pixels), expected, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["vit"], indirect=True)
@pytest.mark.usefixtures("onnx")
def test_eight_bits_take_the_products_of_a_transformer_too(model: CCL, sample_root: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="needs pip install '.[int8]'")
    datamodule = MultiCategory(root=sample_root, categories=["brick", "retina"], num_workers=0)
    path = model.to_openvino(tmp_path, compression_type=CompressionType.INT8_PTQ, datamodule=datamodule)
    weights = sum(parameter.numel() for parameter in model.model.parameters())
    assert path.with_suffix(".bin").stat().st_size < 2 * weights  # in single precision four bytes each
    pixels = torch.stack([item.image for item in datamodule.test_data])
    with torch.no_grad():
        expected = model(pixels).pred_score.numpy()
    near = np.isclose(openvino_outputs(path, pixels)["pred_score"], expected, rtol=0.1)
    # Of a network that was hardly trained, an image may lie between two prototypes and get the limit of the other.
    assert near.mean() > 0.7


@pytest.mark.slow
def test_a_strangers_network_is_trained_calibrated_and_exported(sample_root: Path, tmp_path: Path) -> None:
    script = EXAMPLES / "own_network.py"
    assert len(script.read_text().splitlines()) < 60
    line = [sys.executable, str(script), str(sample_root), "1"]
    result = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "Test results per category" in result.stdout
    exported = Path(result.stdout.split()[-1])
    outputs = openvino_outputs(exported, torch.rand(1, 3, 64, 64))
    assert all(np.isfinite(values).all() for values in outputs.values())
    assert openvino.Core().read_model(exported).has_rt_info(["framework", "class_names"])
