"""Runs that have nothing to do with this package go as without it, and one of ours leaves everything as it was."""

from pathlib import Path

import anomalib.data  # noqa: F401  # from here on, each Trainer gets the callback of this package
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

STATE = Path(__file__).parents[2] / "unit/registration"


class Line(LightningModule):
    """The smallest model that trains."""

    def __init__(self, automatic: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.automatic_optimization = automatic

    def training_step(self, batch: object) -> Tensor:
        loss = sum(self.layer(x).square().mean() for x in _tensors(batch))
        if not self.automatic_optimization:
            self.manual_backward(loss)
            self.optimizers().step()
        return loss

    def test_step(self, batch: object) -> None:
        self.log("loss", sum(self.layer(x).mean() for x in _tensors(batch)))

    predict_step = training_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def _tensors(batch: object) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    return [x for part in (batch.values() if isinstance(batch, dict) else batch) for x in _tensors(part)]


class Stream(IterableDataset):
    def __iter__(self):
        yield from torch.ones(4, 1)


class OwnTrainer(Trainer):
    """A user's own."""


def loader() -> DataLoader:
    return DataLoader(TensorDataset(torch.ones(4, 1)), batch_size=2)


@pytest.mark.parametrize(
    ("trainer", "automatic", "data"),
    [
        (Trainer, True, loader),
        (Trainer, True, lambda: {"a": loader(), "b": loader()}),
        (Trainer, True, lambda: [loader(), loader()]),
        (Trainer, True, lambda: DataLoader(Stream(), batch_size=2)),
        (Trainer, True, lambda: [torch.ones(2, 1)] * 2),
        (Trainer, False, loader),
        (OwnTrainer, True, lambda: {"a": loader(), "b": loader()}),
    ],
    ids=["one loader", "dict of loaders", "list of loaders", "iterable", "list", "manual optimisation", "own trainer"],
)
def test_a_plain_training_runs_to_its_end(trainer, automatic, data, tmp_path):
    model, quiet = Line(automatic), {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    run = trainer(max_epochs=2, default_root_dir=tmp_path, accelerator="cpu", **quiet)
    assert [type(callback).__module__ for callback in run.callbacks if type(callback).__module__[:12] == "anomalib_ccl"]
    run.fit(model, data())
    assert run.global_step == 4
    run.test(model, loader(), verbose=False)
    assert "loss" in run.callback_metrics
    # Nothing is written that Lightning would not write.
    assert {path.name for path in tmp_path.iterdir()} <= {"checkpoints"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "--model=Padim", "--data=.", "--export_type=onnx"], "export_type"),
        (["train", "--config=patchcore.yaml"], "patchcore.yaml"),
        (["export", "--config=ccl_lite0"], "ccl_lite0"),
        (["train", "--modle=Padim"], "modle"),
    ],
)
def test_a_command_line_is_refused_in_the_words_of_anomalib(words, message, run, tmp_path):
    on, off = (
        run("anomalib", *words, cwd=tmp_path, env={"ANOMALIB_CCL_DISABLE": disable}, fresh=True)
        for disable in ("0", "1")
    )
    assert on.returncode == off.returncode == 2
    assert message in on.stderr
    assert on.stderr.splitlines()[-1:] == off.stderr.splitlines()[-1:]


def test_a_foreign_patch_of_logging_stays_in_place(run, tmp_path):
    code = """
import logging, sys
sys.argv[0] = "anomalib"
import anomalib_ccl
from anomalib.cli.cli import AnomalibCLI
own = logging.Logger.callHandlers
def foreign(self, record):
    own(self, record)
logging.Logger.callHandlers = foreign
AnomalibCLI(["fit", "--model=Padim", "--model.pre_trained=false", "--data=MultiCategory"], run=False)
assert logging.Logger.callHandlers is foreign
"""
    done = run("python", "-c", code, cwd=tmp_path, fresh=True)
    assert done.returncode == 0, done.stderr


LIFE = """
import logging, sys
sys.path.append({state!r})
import anomalib.cli.cli, torch.onnx, openvino, state
from anomalib.engine import Engine
from anomalib_ccl import CCL, MultiCategory

def changed(before):
    after = state.attributes()
    return sorted(
        name for name, value in before.items()
        if name in after and after[name] is not value and (callable(value) or callable(after[name]))
    )

seen = set()
def look(*args):
    # "For a moment" too: while the network is in use.
    seen.update(changed(before))

model = CCL("test_efficientnet", pre_trained=False, image_size=(64, 64), visualizer=False)
data = MultiCategory(root={root!r}, categories=["brick", "retina"], num_workers=0, train_batch_size=6)
engine = Engine(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
before = state.attributes()
handle = model.model.register_forward_pre_hook(look)
engine.train(model, datamodule=data)
engine.predict(model, data_path={root!r} + "/brick/test/good")
handle.remove()
engine.export(model, export_type="onnx")
print(sorted(seen | set(changed(before))))
"""


def test_the_whole_life_of_a_model_of_ours_leaves_other_libraries_as_they_were(run, sample_root, tmp_path):
    done = run("python", "-c", LIFE.format(state=str(STATE), root=str(sample_root)), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
