"""The limits of a trained model, shown and set: ``python -m anomalib_ccl.limits FILE --false_alarm_rate 0.01``.

FILE is a checkpoint (``.ckpt``) or an exported model (``.onnx``, or ``.xml`` with its ``.bin``), in any precision.

Example:
    >>> from anomalib_ccl.limits import read_limits, set_false_alarm_rate
    >>> read_limits("model.xml").false_alarm_rate  # doctest: +SKIP
    0.05
    >>> set_false_alarm_rate("model.xml", 0.01)  # doctest: +SKIP
"""

import json
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from anomalib_ccl.export.checkpoint_file import CheckpointFiles, write_checkpoint
from anomalib_ccl.export.checkpoints import check_model
from anomalib_ccl.export.limits_file import AT_LIMIT, Limits, read_exported, tables_of, write_exported
from anomalib_ccl.model import CCL
from anomalib_ccl.model.statistics import check_rate, limits_at
from anomalib_ccl.plugin.own_commands import run

# What anomalib's post-processor has in a checkpoint where the threshold is the limit.
_POST_PROCESSOR_AT_LIMIT = {
    "_image_threshold": 1.0,
    "_pixel_threshold": 1.0,
    "image_min": 0.0,
    "image_max": 2.0,
    "pixel_min": 0.0,
    "pixel_max": 2.0,
}


def read_limits(path: str | Path) -> Limits:
    """Read the limits of a trained model.

    Args:
        path: A checkpoint, or an exported ``.onnx`` or ``.xml`` file.

    Returns:
        The limits.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If it is no file of a calibrated CCL model.
    """
    if not _is_checkpoint(path):
        return read_exported(path)
    _read_checkpoint(path)
    return _limits_of(path)


def set_false_alarm_rate(path: str | Path, false_alarm_rate: float) -> Limits:
    """Set the limits of a trained model anew, in its file, without a training or an export.

    The limits are computed from the levels and spreads that the file knows, and the thresholds of images and maps are
    put where the limits are, whatever set them before. The file is replaced when all is written; on an error it is
    left as it was.

    Args:
        path: A checkpoint, or an exported ``.onnx`` or ``.xml`` file.
        false_alarm_rate: Share of normal images of each product that may be called anomalous, in (0, 0.5].

    Returns:
        The new limits.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the rate is out of its range, it is no file of a calibrated CCL model, or has the thresholds of a
            post-processor of the user's own.
    """
    check_rate(false_alarm_rate)
    if _is_checkpoint(path):
        checkpoint = _read_checkpoint(path)
        checkpoint["hyper_parameters"]["false_alarm_rate"] = false_alarm_rate
        for name, value in _POST_PROCESSOR_AT_LIMIT.items():
            if (threshold := checkpoint["state_dict"].get(f"post_processor.{name}")) is not None:
                threshold.fill_(value)
        write_checkpoint(checkpoint, Path(path))
        return _limits_of(path)
    before = read_exported(path)
    if before.threshold is None:
        msg = (
            f"{path} was exported with a post-processor that cannot be set in the file; set the rate of the checkpoint "
            "and export it again"
        )
        raise ValueError(msg)
    values = limits_at(torch.tensor(before.location), torch.tensor(before.scale), false_alarm_rate).tolist()
    limits = before._replace(limits=values, false_alarm_rate=false_alarm_rate, threshold=1.0, pixel_threshold=1.0)
    write_exported(path, limits, tables_of(values, AT_LIMIT))
    return limits


def as_dict(limits: Limits) -> dict[str, Any]:
    """Lay limits out by product, as ``--json`` prints them.

    Args:
        limits: The limits.

    Returns:
        Plain data: ``products`` has a row for each product and, last, one for unknown ones.
    """
    names = [*limits.class_names, "unknown"]
    rows = zip(names, limits.limits, limits.location, limits.scale, strict=True)
    products = [dict(zip(("product", "limit", "location", "scale"), row, strict=True)) for row in rows]
    others = limits._asdict()
    for name in ("class_names", "limits", "location", "scale"):
        del others[name]
    return {"products": products, **others}


def main() -> None:
    """Read the command line, set the rate if there is one, and print the limits."""
    parser = ArgumentParser(
        prog="python -m anomalib_ccl.limits",
        description="Print the limits of a trained CCL model, of each product, and set its false-alarm rate.",
    )
    parser.add_argument("file", type=Path, help="checkpoint, or exported .onnx or .xml file")
    parser.add_argument(
        "--false_alarm_rate", type=float, help="share of normal images that may be called anomalous, in (0, 0.5]"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    run(parser, lambda given: _show(given.file, given.false_alarm_rate, given.json))


def _show(path: Path, rate: float | None, as_json: bool) -> None:
    limits = read_limits(path) if rate is None else set_false_alarm_rate(path, rate)
    if as_json:
        print(json.dumps(as_dict(limits), ensure_ascii=False, indent=2))
        return
    table = Table(box=SIMPLE, padding=0)
    table.add_column("product", overflow="fold")
    for heading in ("limit", "location", "scale"):
        table.add_column(heading, justify="right")
    for product in as_dict(limits)["products"]:
        name, *values = product.values()
        table.add_row(name, *(f"{value:.4f}" for value in values))
    Console().print(table)
    thresholds = (limits.threshold, limits.pixel_threshold)
    of_image, of_pixel = ("the model's own" if value is None else f"{value:.3f} × the limit" for value in thresholds)
    print(f"False-alarm rate {limits.false_alarm_rate:g}; threshold of images {of_image}, of pixels {of_pixel}.")
    size = "the images' own size" if limits.image_size is None else " × ".join(map(str, limits.image_size)) + " pixels"
    print(f"Scored at {size}." + (f" Written by anomalib-ccl {limits.version}." if limits.version else ""))


def _is_checkpoint(path: str | Path) -> bool:
    return Path(path).suffix == ".ckpt"


def _read_checkpoint(path: str | Path) -> dict[str, Any]:
    checkpoint = CheckpointFiles(CCL.checkpoint_safe_globals()).load_checkpoint(path)
    check_model(checkpoint, path)
    if not len(checkpoint["state_dict"].get("model.calibration.prototypes", ())):
        msg = f"{path} is not calibrated, so it has no limits; train the model to its end with calibrate=True"
        raise ValueError(msg)
    return checkpoint


def _limits_of(path: str | Path) -> Limits:
    model = CCL.load_from_checkpoint(path, map_location="cpu", evaluator=False, visualizer=False)
    return model.known_limits()._replace(version=None)


if __name__ == "__main__":
    main()
