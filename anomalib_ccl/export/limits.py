"""The limits of a trained model, read from its file and set in it, without a training or an export.

The file is a checkpoint (``.ckpt``) or an exported model (``.onnx``, or ``.xml`` with its ``.bin``), in any precision.
Of a checkpoint, nothing but tensors and plain data are read: no network is built, and no code that it names is run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from anomalib.pre_processing.utils.spec import spec_to_transform

from anomalib_ccl.errors import InputError
from anomalib_ccl.export.checkpoint import read_checkpoint, write_checkpoint
from anomalib_ccl.export.model_file import Limits, read_exported, write_exported
from anomalib_ccl.model.limits import check_rate, limits_at

_LIMITS = "model.calibration.limits"
_QUANTILES = "model.calibration.quantiles"


def read_limits(path: str | Path) -> Limits:
    """Read the limits of a trained model.

    Args:
        path: A checkpoint, or an exported ``.onnx`` or ``.xml`` file.

    Returns:
        The limits.

    Raises:
        InputError: If a file is missing or damaged, or is not that of a calibrated CCL model.
    """
    return _limits_of(read_checkpoint(path), path) if _is_checkpoint(path) else read_exported(path)


def set_false_alarm_rate(path: str | Path, false_alarm_rate: float) -> Limits:
    """Set the limits of a trained model to those of another rate, in its file.

    They come from the table of limits that calibration has put into the file. The file is replaced when all is written;
    on an error it is left as it was.

    Args:
        path: A checkpoint, or an exported ``.onnx`` or ``.xml`` file.
        false_alarm_rate: Share of normal images of each product that may be called anomalous, in (0, 0.5].

    Returns:
        The new limits.

    Raises:
        InputError: If the rate is out of its range, a file is missing or damaged, or is not that of a calibrated CCL
            model.
    """
    check_rate(false_alarm_rate)
    known = read_limits(path)
    limits = limits_at(torch.tensor(known.quantiles), false_alarm_rate)
    known = known._replace(limits=limits.tolist(), false_alarm_rate=false_alarm_rate)
    if _is_checkpoint(path):
        checkpoint = read_checkpoint(path)
        checkpoint["state_dict"][_LIMITS] = limits
        checkpoint["hyper_parameters"]["false_alarm_rate"] = false_alarm_rate
        write_checkpoint(checkpoint, path)
    else:
        write_exported(path, known)
    return known


def _is_checkpoint(path: str | Path) -> bool:
    """Tell checkpoints from exported files by their suffix."""
    return Path(path).suffix == ".ckpt"


def _limits_of(checkpoint: Mapping[str, Any], path: str | Path) -> Limits:
    """Find the limits in a checkpoint."""
    state = checkpoint["state_dict"]
    if len(state.get(_QUANTILES, ())) == 0:
        msg = f"{path} is not calibrated, so it has no limits; train the model to its end with calibrate=True"
        raise InputError(msg)
    transform = spec_to_transform(checkpoint.get("anomalib_pre_processor_config", {}).get("transform"))
    return Limits(
        class_names=checkpoint["training_classes"]["names"],
        limits=state[_LIMITS].tolist(),
        quantiles=state[_QUANTILES].tolist(),
        false_alarm_rate=checkpoint["hyper_parameters"]["false_alarm_rate"],
        image_size=None if transform is None else list(transform(torch.zeros(1, 3, 1, 1)).shape[-2:]),
        version=None,
    )
