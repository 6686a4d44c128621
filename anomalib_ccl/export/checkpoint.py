"""Checkpoints: read and written safely, and taken by a model that they make what they are of."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from anomalib.pre_processing import PreProcessor
from anomalib.pre_processing.utils.spec import spec_to_transform
from anomalib.utils.serialization import anomalib_safe_globals
from torch import nn

from anomalib_ccl.errors import InputError
from anomalib_ccl.export.replacing import replacing
from anomalib_ccl.model.reconstruction.choice import is_loaded
from anomalib_ccl.training.options import architecture

COMPONENTS = ("pre_processor", "post_processor", "evaluator", "visualizer")
# What a user gives of these must be what a checkpoint was trained with: of other layers, sizes or maps its weights load
# or do not, and its limits are not those of the scores. All else is about how a network is trained, or looks on.
ARCHITECTURE = ("recipe", "reconstruction", "backbone", "image_size", "tiles", "memory", "calibrate")
CLASSES = ("class_labels", "n_pseudo_classes")  # which a training that goes on must find again
_PRE_PROCESSOR = "anomalib_pre_processor_config"
_POST_PROCESSOR = "anomalib_post_processor_config"
_ENABLED = "anomalib_components_enabled"


def read_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read the checkpoint of a CCL model: tensors and plain data, nothing that would run."""
    if not Path(path).is_file():
        msg = f"no checkpoint at {path}; `anomalib train` writes one to results/…/weights/lightning/model.ckpt"
        raise InputError(msg)
    try:
        with anomalib_safe_globals():
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # what another file makes torch raise is of many kinds
        msg = f"{path} is not a checkpoint, or a damaged one; give one that `anomalib train` wrote"
        raise InputError(msg) from error
    check_model(checkpoint, path)
    return checkpoint


def write_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint that takes its place when it is whole."""
    with replacing(path) as written:
        torch.save(checkpoint, written)


def check_model(checkpoint: Any, source: str | Path) -> None:  # noqa: ANN401  # whatever a file holds
    """Refuse what is not the checkpoint of a CCL model."""
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not weights or not any(name.startswith("model.network.") for name in weights):
        msg = f"{source} is not the checkpoint of a CCL model; give one that `anomalib train --model CCL` wrote"
        raise InputError(msg)


def plain(name: str, value: Any) -> Any:  # noqa: ANN401
    """Give an argument as a checkpoint has it: sequences are tuples, whatever a configuration gave."""
    if name == "image_size" and (not isinstance(value, Sequence) or [type(n) for n in value] != [int, int]):
        msg = f"image_size must be two whole numbers, the height and the width in pixels, got {value!r}"
        raise InputError(msg)
    return tuple(value) if name in ("image_size", "tiles") and isinstance(value, Sequence) else value


def check_given(given: Mapping[str, Any], saved: Mapping[str, Any], source: str | Path, goes_on: bool = False) -> None:
    """Refuse arguments that make another model or training of a checkpoint's weights, and code that it alone names."""
    names = [*ARCHITECTURE, *(CLASSES if goes_on else ())]
    pairs = [(name, given[name], saved[name]) for name in names if name in given]
    for name, asked, known in pairs:
        if plain(name, asked) != plain(name, known):
            _refuse(f"{name}={asked!r}", f"{name}={known!r}", source)
    network = saved["reconstruction"]
    if "reconstruction" not in given and not is_loaded(network):
        msg = (
            f"{source} is of the network {network!r}, which is not part of anomalib-ccl. Its code is not run because a "
            f"file says so: give reconstruction={network!r} yourself if you trust it"
        )
        raise InputError(msg)
    trained = architecture(saved)
    asked = architecture({**saved, "research": {**saved["research"], **given["research"]}})
    for name in trained:
        if asked[name] != trained[name]:
            _refuse(f"{name}={asked[name]!r}", f"{name}={trained[name]!r}", source)


def prepare_components(model: Any, checkpoint: dict[str, Any], source: str | Path) -> None:  # noqa: ANN401
    """Have anomalib restore what a checkpoint knows of components, and leave alone those that the user gave."""
    # A default component that the checkpoint was trained without is among the trainer's callbacks already when a
    # checkpoint is loaded; it is made to do nothing.
    enabled = checkpoint[_ENABLED]
    if "pre_processor" in model.given:
        _compare(model.pre_processor, checkpoint, source)
    elif model.pre_processor is not None and not enabled["pre_processor"]:
        model.pre_processor.load_checkpoint_config({"transform": None})
    if "post_processor" in model.given:
        checkpoint.pop(_POST_PROCESSOR, None)
    elif model.post_processor is not None and not enabled["post_processor"]:
        model.post_processor.enable_normalization = model.post_processor.enable_thresholding = False
    if model.post_processor is None:
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: weights[name] for name in weights if not name.startswith("post_processor.")}
    checkpoint[_ENABLED] = {**enabled, **{name: True for name in COMPONENTS if name in model.given}}


def forget_progress(checkpoint: dict[str, Any], datamodule: str = "MultiCategory") -> None:
    """Leave of a checkpoint what a training on other data can begin with: the weights."""
    checkpoint.pop("loops", None)
    checkpoint.pop(datamodule, None)
    checkpoint.update(callbacks={}, optimizer_states=[], lr_schedulers=[])


def _compare(pre_processor: nn.Module | None, checkpoint: dict[str, Any], source: str | Path) -> None:
    """Refuse a pre-processor with other transforms than a checkpoint knows of; anomalib cannot save random ones."""
    trained = checkpoint.pop(_PRE_PROCESSOR, {}).get("transform")
    asked = pre_processor.checkpoint_config()["transform"] if isinstance(pre_processor, PreProcessor) else None
    if asked != trained:
        _refuse(f"pre_processor={_text(asked)}", f"pre_processor={_text(trained)}", source)


def _text(spec: dict[str, Any] | None) -> str:
    return "False" if spec is None else " ".join(repr(spec_to_transform(spec)).split())  # type: ignore[arg-type]


def _refuse(asked: str, trained: str, source: str | Path) -> None:
    msg = f"{source} was trained with {trained}, not {asked}; leave it out, or give another checkpoint"
    raise InputError(msg)
