"""CCL on each reconstruction network: what works for reverse distillation works for all.

A further network is one more row here. What other tests do with reverse distillation alone is not done twice.
"""

import sys
from pathlib import Path

import pytest
import torch
from trainings import (
    EXAMPLES,
    NETWORKS,
    Steps,
    assert_calibrated_for_its_weights,
    assert_same_state,
    ccl,
    data,
    engine,
    last_checkpoint,
)

from anomalib_ccl import CCL
from anomalib_ccl.errors import InputError

pytestmark = pytest.mark.openvino

Run = tuple[CCL, Path, list[dict[str, float]]]


@pytest.fixture(scope="module", params=NETWORKS)
def run(request: pytest.FixtureRequest, sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A model, its checkpoint, and the losses of its steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        model, steps = ccl(**NETWORKS[request.param]), Steps()
    folder = tmp_path_factory.mktemp("run")
    engine(folder, steps, max_epochs=2, limit_val_batches=0).fit(model, datamodule=data(sample_root))
    return model, last_checkpoint(folder), steps.losses


def test_training_has_both_losses_and_a_calibration(run: Run, sample_root: Path) -> None:
    model, _, losses = run
    for name in ("train_loss_reconstruction", "train_loss_local", "train_loss_global"):
        assert sum(step[name] for step in losses) > 0
    assert model.class_names == ["brick", "retina"]
    assert_calibrated_for_its_weights(model, data(sample_root))


def test_a_checkpoint_makes_the_network_again_and_goes_on_training(run: Run, sample_root: Path, tmp_path: Path) -> None:
    model, checkpoint, _ = run
    loaded = CCL.load_from_checkpoint(checkpoint, visualizer=False)
    assert {name: loaded.hparams[name] for name in model.hparams} == dict(model.hparams)
    assert_same_state(loaded, model)
    with pytest.raises(InputError, match=r"trained with reconstruction=.*, not reconstruction='tree'"):
        CCL.load_from_checkpoint(checkpoint, reconstruction="tree")
    resumed = ccl(backbone=None)
    engine(tmp_path, max_epochs=3, limit_val_batches=0).fit(resumed, datamodule=data(sample_root), ckpt_path=checkpoint)
    assert type(resumed.model.network) is type(model.model.network)
    assert resumed.loss.local.temperature == model.model.network.recipe.temperature


def test_features_from_the_disk_are_those_of_the_network(run: Run, sample_root: Path, tmp_path: Path) -> None:
    (name,) = (
        n for n, arguments in NETWORKS.items() if arguments["reconstruction"] == run[0].hparams["reconstruction"]
    )
    steps, model = (
        Steps(),
        ccl(**{**NETWORKS[name], "memory": 0, "calibrate": False, "feature_cache": tmp_path / "cache"}),
    )
    engine(tmp_path, steps, max_epochs=2, limit_val_batches=0).fit(model, datamodule=data(sample_root))
    assert steps.losses[0]["train_loss"] == pytest.approx(run[2][0]["train_loss"], rel=1e-5)
    assert steps.losses[-1]["train_loss"] == pytest.approx(run[2][-1]["train_loss"], rel=0.2)


TRACE = """
from pathlib import Path
Path({trace!r}).touch()
from anomalib_ccl.model.reconstruction import ReconstructionNetwork
from own_network import PixelAutoencoder

class Network(PixelAutoencoder):
    pass
"""


@pytest.mark.parametrize("way", ["load_from_checkpoint", "fit", "test", "predict", "read_limits"])
@pytest.mark.parametrize("run", ["own"], indirect=True)
def test_a_class_path_in_a_checkpoint_is_imported_only_if_the_caller_gives_it(
    way: str, run: Run, sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anomalib_ccl.export.limits import read_limits  # noqa: PLC0415

    module, trace = f"left_a_trace_{way}", tmp_path / "trace"
    (tmp_path / f"{module}.py").write_text(TRACE.format(trace=str(trace)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    checkpoint = torch.load(run[1], weights_only=True)
    checkpoint["hyper_parameters"]["reconstruction"] = f"{module}.Network"
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    refused = pytest.raises(InputError, match=rf"give reconstruction='{module}.Network' yourself if you trust it")
    if way == "load_from_checkpoint":
        with refused:
            CCL.load_from_checkpoint(tmp_path / "bad.ckpt")
    elif way == "read_limits":
        assert read_limits(tmp_path / "bad.ckpt").class_names == run[0].class_names  # without the network
    else:
        with refused:
            use = getattr(engine(tmp_path), way)
            use(ccl(backbone=None), datamodule=data(sample_root), ckpt_path=tmp_path / "bad.ckpt")
    assert not trace.exists()
    assert module not in sys.modules
    loaded = CCL.load_from_checkpoint(tmp_path / "bad.ckpt", reconstruction=f"{module}.Network")
    assert trace.exists()
    assert_same_state(loaded, run[0])
