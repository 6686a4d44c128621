"""Training on two processes, forks of this one: gradients, weights and calibration are those of one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from torch import Tensor, nn
from trainings import assert_calibrated_for_its_weights, assert_same_state, ccl, data, engine, last_checkpoint, state

from anomalib_ccl import CCL


class Mirrored(nn.Module):
    """A second view that nothing random is in."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flip(-1).square()


class Gradients(Callback):
    """Save the gradients of a step in which nothing is random, and nothing depends on the images of one process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_start(self, trainer: Any, pl_module: CCL, *args: Any) -> None:
        pl_module._second_view = Mirrored()
        for module in pl_module.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    def on_after_backward(self, trainer: Any, pl_module: CCL) -> None:
        gradients = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
        torch.save(gradients, self.folder / f"{trainer.world_size}-{trainer.global_rank}.pt")


class SaveState(Callback):
    """Save what each process has in memory at the end, and the images that it saw."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[str] = []

    def on_train_batch_end(self, trainer: Any, pl_module: CCL, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen += batch.image_path

    def on_fit_end(self, trainer: Any, pl_module: CCL) -> None:
        saved = {"state": state(pl_module), "seen": self.seen, "names": pl_module.class_names}
        torch.save(saved, self.folder / f"{trainer.global_rank}.pt")


TWO: dict[str, Any] = {"strategy": "ddp_fork", "devices": 2}


def test_gradients_of_two_processes_are_those_of_one_with_the_whole_batch(sample_root: Path, tmp_path: Path) -> None:
    for processes in (1, 2):
        model = ccl(research={"local_weight": 0, "noise_probability": 0}, calibrate=False)
        two = TWO if processes == 2 else {}
        run = engine(tmp_path, Gradients(tmp_path), max_steps=1, limit_val_batches=0, **two)
        run.fit(model, datamodule=data(sample_root, train_batch_size=12 // processes))
    found: list[dict[str, Tensor]] = [torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1")]
    expected, *both = found
    assert len(expected) > 2
    for gradients in both:
        torch.testing.assert_close(gradients, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("options", [{"memory": 20}, {"recipe": "memory", "memory": 20}], ids=["fused", "memory"])
def test_two_processes_share_the_images_and_end_with_the_state_that_one_would_find(
    options: dict[str, Any], sample_root: Path, tmp_path: Path
) -> None:
    model, images = ccl(**options), data(sample_root, train_batch_size=3)
    engine(tmp_path, SaveState(tmp_path), max_epochs=1, **TWO).fit(model, datamodule=images)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
    assert first["names"] == second["names"] == ["brick", "retina"]
    images.setup()
    samples = images.train_data.samples
    if "recipe" not in options:
        assert sorted(first["seen"] + second["seen"]) == sorted(samples["image_path"])
    loaded = CCL.load_from_checkpoint(last_checkpoint(tmp_path))
    assert_same_state(loaded, model)
    indices = samples["category"].map(loaded.class_names.index)
    loaded.classes.index_of_image = dict(zip(samples["image_path"], indices, strict=True))
    assert_calibrated_for_its_weights(loaded, images)
