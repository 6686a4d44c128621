"""Small trainings, and what callbacks see of them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import openvino
import torch
from anomalib.engine import Engine
from lightning import Callback, seed_everything
from torch import Tensor

from anomalib_ccl import CCL, MultiCategory
from anomalib_ccl.data.passes import Passes
from anomalib_ccl.training.calibrate import calibrate

SMALL: dict[str, Any] = {
    "backbone": "test_efficientnet",
    "pre_trained": False,
    "image_size": (64, 64),
    "visualizer": False,
}
#: One of each network, the last one in ``examples/``.
NETWORKS: dict[str, dict[str, Any]] = {
    "reverse_distillation": {"reconstruction": "reverse_distillation", "backbone": "test_efficientnet"},
    "vit": {"reconstruction": "vit", "backbone": "test_vit", "memory": 20},
    "dinomaly": {
        "reconstruction": "dinomaly",
        "backbone": "vit_tiny_patch16_224",
        "recipe": "recommended",
        "memory": 20,
        "research": {"reconstruction_args": {"use_context_recentering": True}},
    },
    "own": {
        "reconstruction": "own_network.PixelAutoencoder",
        "backbone": None,
        "research": {"reconstruction_args": {"width": 8}},
    },
}
EXAMPLES = Path(__file__).parents[1] / "examples"
PRODUCTS = ("brick", "retina")
#: Of ``data()``: six training images of each of two products, in batches of four.
STEPS = 3


def ccl(**arguments: Any) -> CCL:
    """A small model, the same each time."""
    seed_everything(0)
    return CCL(**{**SMALL, **arguments})


def data(root: Path, categories: Sequence[str] = PRODUCTS, **arguments: Any) -> MultiCategory:
    sizes = {"train_batch_size": 4, "eval_batch_size": 4, "num_workers": 0}
    return MultiCategory(root=root, categories=list(categories), **{**sizes, **arguments})


def engine(folder: Path, *callbacks: Callback, **arguments: Any) -> Engine:
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Engine(default_root_dir=folder, callbacks=list(callbacks), **{**quiet, **arguments})


class Steps(Callback):
    """Keep what is logged, the learning rates and the norm of the gradients, step by step."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []
        self.rates: list[list[float]] = []
        self.norms: list[float] = []
        self.epochs: list[int] = []
        self.start: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: CCL, *args: Any) -> None:
        self.start = self.start or state(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: CCL, *args: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(torch.nn.utils.get_total_norm(gradients).item())
        logged = trainer.callback_metrics.items()
        self.losses.append({name: value.item() for name, value in logged if name.startswith("train_loss")})
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])
        self.epochs.append(trainer.current_epoch)


class StopAtOnce(Callback):
    """End the training after its first step."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        trainer.should_stop = True


class Failure(Callback):
    """Fail in the second epoch."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.current_epoch == 1:
            msg = "broken"
            raise RuntimeError(msg)


def last_checkpoint(folder: Path) -> Path:
    return max(folder.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)


def state(model: CCL) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def assert_same_state(model: CCL, other: CCL) -> None:
    ours, theirs = state(model), state(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def assert_calibrated_for_its_weights(model: CCL, datamodule: MultiCategory) -> None:
    """Calibrate once more, by hand."""
    anew = deepcopy(model.model).eval()
    if not hasattr(datamodule, "train_data"):
        datamodule.setup()
    images = Passes(datamodule.train_dataloader(), model.pre_processor, torch.device("cpu"), shows_progress=False)
    calibrate(anew, images.labelled(model.classes.labels))
    assert model.model.calibration.is_calibrated
    for part in ("calibration", "memory"):
        for name, value in getattr(anew, part).named_buffers():
            torch.testing.assert_close(
                getattr(model.model, part).get_buffer(name), value, rtol=1e-3, atol=1e-4, msg=name
            )


def assert_exports_give_the_engines_answer(model: CCL, folder: Path) -> None:
    """Export to OpenVINO, and compare for images of a camera, one of which is of an unknown product."""
    pixels = torch.rand(2, 3, 80, 100, generator=torch.Generator().manual_seed(0))
    pixels[1, :, 20:60] /= 4
    calibration = model.eval().model.calibration
    with torch.no_grad():
        embeddings = torch.nn.functional.normalize(model(pixels).embedding)
        distances = 1 - (embeddings @ calibration.prototypes.T).amax(dim=1)
        calibration.novelty_threshold.fill_(distances.mean())
        expected = model(pixels)
    assert (expected.class_index == len(calibration.prototypes)).sum() == 1
    single_precision = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(model.to_openvino(folder), "CPU", single_precision)
    for part in (slice(0, 2), slice(0, 1), slice(1, 2)):
        found = compiled(pixels[part].numpy())
        for name in ("pred_score", "anomaly_map"):
            wanted = getattr(expected, name)[part]
            torch.testing.assert_close(torch.from_numpy(found[name]), wanted, rtol=1e-3, atol=1e-4)
