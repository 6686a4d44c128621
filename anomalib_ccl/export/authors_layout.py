"""The layout of checkpoints of the authors' released code (repository ``LGC-AD/AD-LGC``), and ours.

Their network is ours under other names::

    net_t.*                          the teacher, 258 tensors
    mff_oce.*                        the bottleneck, 78 tensors
    net_s.*                          the decoder, 252 tensors
    proj_layer.proj_{a,b,c}.proj.*   the projections of strides 4, 8 and 16, 24 tensors; 48 where they are "light"

The state dictionary is a file of its own, or lies under the key ``net`` of a dictionary that holds other things too;
``module.`` may stand in front of all names.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The only backbone of their released configurations.
BACKBONE = "wide_resnet50_2"

_OURS = {
    "net_t.": "model.network.teacher.feature_extractor.",
    "mff_oce.": "model.network.bottleneck.",
    "net_s.": "model.network.decoder.",
    "proj_layer.proj_a.proj.": "model.projections.0.",
    "proj_layer.proj_b.proj.": "model.projections.1.",
    "proj_layer.proj_c.proj.": "model.projections.2.",
}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}
# Layers of anomalib's bottleneck that no output depends on, and that theirs has not.
_UNUSED = ("mff_oce.conv4.", "mff_oce.bn4.")
# A layer that only depthwise-separable projections have.
_LIGHT = "proj_layer.proj_a.proj.13.weight"
# Beside the weights lie the figures of their evaluation, which are NumPy's numbers.
_NUMBERS: list[Any] = [
    np.dtype,
    type(np.dtype(np.float64)),
    type(np.dtype(np.float32)),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
]


def read_authors(path: str | Path) -> dict[str, Tensor] | None:
    """Read a checkpoint in the authors' layout; nothing but tensors, plain data and numbers is unpickled.

    Args:
        path: The file.

    Returns:
        The weights by the authors' names; None if the file is a checkpoint of Lightning.

    Raises:
        OSError: If there is no such file, or it cannot be read.
        ValueError: If it is no checkpoint, or has no state dictionary.
    """
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        msg = (
            f"{path} is no checkpoint, or holds other things than weights, plain data and numbers; if you trust it, "
            "save what is under its key 'net' to a file of its own"
        )
        raise ValueError(msg) from error
    except (RuntimeError, EOFError) as error:  # torch's words for a file that is no archive, or half of one
        msg = f"{path} is no checkpoint, or a damaged one"
        raise ValueError(msg) from error
    if isinstance(held, dict) and "pytorch-lightning_version" in held:
        return None
    weights = held.get("net", held) if isinstance(held, dict) else held
    if not isinstance(weights, dict) or not weights or not all(isinstance(x, Tensor) for x in weights.values()):
        msg = f"{path} holds no state dictionary, neither as a whole nor under the key 'net'"
        raise ValueError(msg)
    return {name.removeprefix("module."): tensor for name, tensor in weights.items()}


def projection_of(weights: Mapping[str, Tensor]) -> str:
    """Tell the kind of the projections.

    Args:
        weights: Weights by the authors' names.

    Returns:
        ``"light"`` where they are depthwise-separable, else ``"standard"``.
    """
    return "light" if _LIGHT in weights else "standard"


def from_authors(weights: Mapping[str, Tensor], model: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """Rename weights from the authors' layout to ours.

    Args:
        weights: Weights by the authors' names.
        model: The state dictionary of a :class:`~anomalib_ccl.CCL` of the same backbone and projection.
        source: What the weights are called in messages.

    Returns:
        The state dictionary of the model, with these weights in their places; the rest is the model's.

    Raises:
        ValueError: If a tensor is missing, has no place, or is of another shape.
    """
    wanted = {name: tensor for ours, tensor in model.items() if (name := _their_name(ours))}
    missing, left = [name for name in wanted if name not in weights], [name for name in weights if name not in wanted]
    if missing or left:
        faults = [
            f"{fault} {_some(names)}"
            for fault, names in (("it lacks", missing), ("there is no place for", left))
            if names
        ]
        msg = f"{source} is not in the authors' layout of {BACKBONE}: {' and '.join(faults)}"
        raise ValueError(msg)
    for name, tensor in wanted.items():
        if weights[name].shape != tensor.shape:
            shape, right = tuple(weights[name].shape), tuple(tensor.shape)
            msg = f"{source} is of another backbone than {BACKBONE}: {name} has the shape {shape} instead of {right}"
            raise ValueError(msg)
    return {**model, **{_our_name(name): tensor for name, tensor in weights.items()}}


def to_authors(model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights from our layout to the authors'.

    What has no place there is left out: calibration and thresholds, and the two layers of anomalib's bottleneck that
    nothing depends on, where the model has them. The authors' layout has nothing that ours has not.

    Args:
        model: The state dictionary of a :class:`~anomalib_ccl.CCL`.

    Returns:
        The weights by the authors' names.
    """
    return {name: tensor for ours, tensor in model.items() if (name := _their_name(ours))}


def _our_name(name: str) -> str:
    return next(ours + name.removeprefix(theirs) for theirs, ours in _OURS.items() if name.startswith(theirs))


def _their_name(name: str) -> str:
    """The authors' name of a tensor of ours; empty where they have none."""
    theirs = next((new + name.removeprefix(old) for old, new in _THEIRS.items() if name.startswith(old)), "")
    return "" if theirs.startswith(_UNUSED) else theirs


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
