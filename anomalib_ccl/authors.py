"""Turns checkpoints of the authors' released code into ours, and ours into theirs.

``python -m anomalib_ccl.authors IN OUT`` finds out from IN which way to go. See
:mod:`anomalib_ccl.export.authors_layout` for the layouts.
"""

import argparse
import logging
import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from anomalib_ccl.export.authors_layout import BACKBONE, from_authors, projection_of, read_authors, to_authors
from anomalib_ccl.model import CCL


def main() -> None:
    """Read the command line and convert the checkpoint."""
    parser = argparse.ArgumentParser(
        prog="python -m anomalib_ccl.authors",
        description="Turn a checkpoint of the authors' released code (WideResNet-50-2) into one of anomalib-ccl, or "
        "the other way round.",
    )
    parser.add_argument("source", metavar="IN", type=Path, help="checkpoint of either kind")
    parser.add_argument("target", metavar="OUT", type=Path, help="file to write, which must not be there yet")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)  # Lightning's words on processors
    try:
        print(convert(arguments.source, arguments.target))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def convert(source: str | Path, target: str | Path) -> str:
    """Convert a checkpoint.

    Args:
        source: A checkpoint in the authors' layout or in ours.
        target: The file to write.

    Returns:
        What was written, and what that has not.

    Raises:
        OSError: If the source cannot be read, or the target is there already or cannot be written.
        ValueError: If the source is not one of WideResNet-50-2 in either layout, or lacks a part.
    """
    if Path(target).exists():
        msg = f"{target} is there already; give another file to write, or remove it"
        raise FileExistsError(msg)
    if not Path(source).is_file():
        msg = f"there is no file {source}"
        raise FileNotFoundError(msg)
    weights = read_authors(source)
    if weights is None:
        return _write_theirs(CCL.load_from_checkpoint(source), target, source)
    model = CCL(backbone=BACKBONE, pre_trained=False, projection=projection_of(weights))  # type: ignore[arg-type]
    model.load_state_dict(from_authors(weights, model.state_dict(), source))
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", devices=1, barebones=True)
    trainer.strategy.connect(model)
    model.trainer = trainer
    trainer.save_checkpoint(target, weights_only=True)
    return (
        f"{target}: {len(weights)} tensors, for `anomalib test`, `predict` and `export`. The authors' checkpoints know "
        "no product, no limit and no threshold: scores are not calibrated."
    )


def _write_theirs(model: CCL, target: str | Path, source: str | Path) -> str:
    backbone, projection = model.hparams["backbone"], model.hparams["projection"]
    if backbone != BACKBONE or projection not in {"standard", "light"}:
        msg = f"{source} is of backbone={backbone!r} and projection={projection!r}; theirs are of {BACKBONE!r}, and "
        raise ValueError(msg + "'standard' or 'light'")
    weights = to_authors(model.state_dict())
    torch.save({"net": weights}, target)
    return f"{target}: {len(weights)} tensors under 'net'; calibration, classes and thresholds have no place there."


if __name__ == "__main__":
    main()
