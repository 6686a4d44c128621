"""Checkpoints of the authors' released code (repository ``LGC-AD/AD-LGC``) turned into ours, and ours into theirs.

Their network is ours under other names. Their state dictionary is a file of its own, or lies under the key ``net`` of a
dictionary that holds other things too; ``module.`` may stand in front of all names.

Converted weights give the authors' features to the bit. Maps differ within 16 pixels of the border: their Gaussian
blur continues a map with its edge pixel, anomalib's, which is ours, with its mirror image. Scores of images whose
maximum lies there differ by up to 5e-3.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from anomalib_ccl.errors import InputError
from anomalib_ccl.export.checkpoint import read_checkpoint
from anomalib_ccl.export.replacing import replacing
from anomalib_ccl.lightning_model import CCL
from anomalib_ccl.training.options import Research, chosen

#: The only backbone of their released configurations.
BACKBONE = "wide_resnet50_2"

_THEIRS = {
    "model.network.teacher.feature_extractor.": "net_t.",
    "model.network.bottleneck.": "mff_oce.",
    "model.network.decoder.": "net_s.",
    "model.projections.0.": "proj_layer.proj_a.proj.",
    "model.projections.1.": "proj_layer.proj_b.proj.",
    "model.projections.2.": "proj_layer.proj_c.proj.",
}
# Their files also hold the figures of their evaluation, which are NumPy's numbers.
_NUMBERS = [
    np.dtype,
    type(np.dtype(np.float64)),
    type(np.dtype(np.float32)),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
]


def convert(source: str | Path, target: str | Path, backbone: str = BACKBONE) -> str:
    """Convert a checkpoint, of the authors' layout into ours or the other way round, whichever it is.

    Args:
        source: A checkpoint in either layout.
        target: The file to write.
        backbone: Name of the timm model that is the teacher.

    Returns:
        A sentence on what was written, and what it lacks.

    Raises:
        InputError: If the source cannot be read, or is not of that backbone, or lacks a part, or if the target exists.
    """
    if Path(target).exists():
        msg = f"{target} exists already; give another file to write, or remove it"
        raise InputError(msg)
    weights = read_authors(source)
    if weights is None:
        return _write_theirs(source, target, backbone)
    is_light = "proj_layer.proj_a.proj.13.weight" in weights  # a layer of depthwise-separable projections alone
    research = Research(projection="light" if is_light else "standard")
    model = CCL(backbone=backbone, pre_trained=False, calibrate=False, research=research)
    model.load_state_dict(from_authors(weights, model.state_dict(), source))
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", devices=1, barebones=True)
    trainer.strategy.connect(model)
    model.trainer = trainer
    trainer.save_checkpoint(target, weights_only=True)
    return (
        f"{target}: {len(weights)} tensors, for `anomalib test`, `predict` and `export`. The authors' checkpoints know "
        "no product and no limit, so scores are not calibrated; those at the border differ a little from theirs."
    )


def read_authors(path: str | Path) -> dict[str, Tensor] | None:
    """Read a checkpoint in the authors' layout; nothing but tensors, plain data and numbers is unpickled."""
    try:
        with torch.serialization.safe_globals(_NUMBERS):  # type: ignore[arg-type]  # pairs of a type and its name too
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a file that is no checkpoint makes torch raise is of many kinds
        msg = (
            f"{path} is not there, is no checkpoint, or holds other things than weights, plain data and numbers; if "
            "you trust it, save what is under its key 'net' to a file of its own"
        )
        raise InputError(msg) from error
    if isinstance(held, dict) and "pytorch-lightning_version" in held:
        return None
    weights = held.get("net", held) if isinstance(held, dict) else held
    if not isinstance(weights, dict) or not weights or not all(isinstance(x, Tensor) for x in weights.values()):
        msg = f"{path} holds no state dictionary, neither as a whole nor under the key 'net'"
        raise InputError(msg)
    return {name.removeprefix("module."): tensor for name, tensor in weights.items()}


def from_authors(weights: Mapping[str, Tensor], model: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """Rename weights from the authors' layout to ours."""
    wanted = to_authors(model)
    names = [*wanted, *(name for name in weights if name not in wanted)]
    shapes = [{name: tensor.shape for name, tensor in tensors.items()} for tensors in (weights, wanted)]
    differing = [name for name in names if shapes[0].get(name) != shapes[1].get(name)]
    if differing:
        msg = (
            f"{source} is not in the authors' layout of this backbone: {', '.join(differing[:3])}, {len(differing)} "
            "tensors in all, are missing, of another shape, or without a place"
        )
        raise InputError(msg)
    return {ours: weights.get(_their_name(ours), tensor) for ours, tensor in model.items()}


def to_authors(model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights from our layout to the authors', which has no place for calibration and memory."""
    theirs = {_their_name(ours): tensor for ours, tensor in model.items()}
    return {name: tensor for name, tensor in theirs.items() if name}


def _their_name(name: str) -> str:
    """The authors' name of a tensor of ours; empty where they have none."""
    return next((new + name.removeprefix(old) for old, new in _THEIRS.items() if name.startswith(old)), "")


def _write_theirs(source: str | Path, target: str | Path, backbone: str) -> str:
    """Write a checkpoint of ours in the authors' layout."""
    checkpoint = read_checkpoint(source)
    weights, given = to_authors(checkpoint["state_dict"]), checkpoint["hyper_parameters"]
    settings, _ = chosen(given["recipe"], given["research"])
    if given["backbone"] != backbone or settings.skip or settings.projection == "none":
        msg = (
            f"{source} is of backbone={given['backbone']!r}, projection={settings.projection!r} and skip="
            f"{settings.skip}; theirs are of {backbone!r}, 'standard' or 'light', and have no skip connection"
        )
        raise InputError(msg)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as written:
        torch.save({"net": weights}, written)
    return f"{target}: {len(weights)} tensors under 'net'; calibration and classes have no place there."
