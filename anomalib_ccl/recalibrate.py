"""Prototypes and limits found anew, products added and forgotten, without a training.

``python -m anomalib_ccl.recalibrate --help`` tells how; from Python:

Example:
    >>> from anomalib_ccl.recalibrate import recalibrate
    >>> recalibrate("model.ckpt", MultiCategory(root="new_products"), add=True).path  # doctest: +SKIP
    PosixPath('model-recalibrated.ckpt')
"""

import logging
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from anomalib.data import AnomalibDataModule
from jsonargparse import ArgumentParser
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from anomalib_ccl.classes.labels import ClassLabels, class_names
from anomalib_ccl.data import MultiCategory
from anomalib_ccl.data.samples import samples_of
from anomalib_ccl.export.checkpoint_file import CheckpointFiles, write_checkpoint
from anomalib_ccl.metrics.pixel import refuse_nan
from anomalib_ccl.model import CCL
from anomalib_ccl.plugin.own_commands import run
from anomalib_ccl.training.further import forget_progress
from anomalib_ccl.training.scoring import raw_scores
from anomalib_ccl.training.views import calibration_view

logger = logging.getLogger(__name__)


class Recalibrated(NamedTuple):
    """What :func:`recalibrate` has made.

    Attributes:
        path: The new checkpoint.
        products: A row for each product that limits were found for: ``product``, ``images``, ``limit``, and ``above``,
            the share of its images whose raw score exceeds the limit.
        false_alarm_rate: The share that is meant to.
    """

    path: Path
    products: pd.DataFrame
    false_alarm_rate: float


def recalibrate(
    ckpt_path: str | Path,
    datamodule: AnomalibDataModule | None = None,
    add: bool = False,
    remove: str | None = None,
    output: str | Path | None = None,
) -> Recalibrated:
    """Find prototypes and limits anew, add products or forget one, and write a new checkpoint.

    The weights stay as they are; one pass over normal images is all. The training images of the datamodule are taken,
    seen once more from a little nearer, as at the end of a training. Its validation and test images are not looked
    at: the thresholds of anomalib's post-processor, set on calibrated scores, count limits, so that they go on to mean
    the same when limits change.

    Without ``add`` and ``remove``, all products that the checkpoint knows are calibrated anew, as when the light has
    changed; the datamodule must have images of each. With ``add``, those of the datamodule come behind the known ones,
    whose prototypes and limits stay to the bit (see :meth:`~anomalib_ccl.model.calibration.ClassCalibration.add`).
    With ``remove``, one is forgotten, and the others stay to the bit.

    A training with ``--ckpt_path`` starts from the weights of the new checkpoint, as from one with other products.

    Args:
        ckpt_path: Checkpoint of a calibrated :class:`~anomalib_ccl.CCL`.
        datamodule: Datamodule that tells the product of each normal image, such as
            :class:`~anomalib_ccl.data.MultiCategory`. For a model that found its classes itself any will do, unless
            products are added: each image then counts for the class of the nearest prototype.
        add: Whether the products of the datamodule are new ones.
        remove: The name of a product to forget; no datamodule is needed.
        output: Where to write; ``<name>-recalibrated.ckpt`` beside the old checkpoint if not given.

    Returns:
        The path of the new checkpoint, and how many images exceed the new limits.

    Raises:
        FileExistsError: If there is a file already where the new checkpoint would be written.
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it is not one of a calibrated CCL model, the products are not as above, a score is NaN, or the
            arguments do not go together.
    """
    ckpt_path = Path(ckpt_path)
    path = ckpt_path.with_name(f"{ckpt_path.stem}-recalibrated.ckpt") if output is None else Path(output)
    if (datamodule is None) == (remove is None) or (add and remove is not None):
        msg = "give either --data, with normal images of the products to calibrate or --add, or --remove NAME"
        raise ValueError(msg)
    model = CCL.load_from_checkpoint(ckpt_path, map_location="cpu", evaluator=False, visualizer=False)
    if not model.model.calibration.is_calibrated:
        msg = f"{ckpt_path} is not calibrated, so it knows no products; train the model to its end with calibrate=True"
        raise ValueError(msg)
    if path.exists():
        msg = f"{path} is there already and is not overwritten; give another file with --output"
        raise FileExistsError(msg)
    if not path.parent.is_dir():
        msg = f"there is no folder {path.parent} to write the new checkpoint into; make it first"
        raise FileNotFoundError(msg)

    products = _forget(model, remove) if remove is not None else _calibrate(model, datamodule, add)
    checkpoint = CheckpointFiles(CCL.checkpoint_safe_globals()).load_checkpoint(ckpt_path)
    state = {f"model.calibration.{name}": value for name, value in model.model.calibration.state_dict().items()}
    checkpoint["state_dict"] = {**checkpoint["state_dict"], **{name: value.cpu() for name, value in state.items()}}
    checkpoint["training_classes"] = model.classes.state_dict()
    forget_progress(checkpoint, MultiCategory)
    write_checkpoint(checkpoint, path)
    return Recalibrated(path, products, model.model.calibration.false_alarm_rate)


def _forget(model: CCL, name: str) -> pd.DataFrame:
    names = model.classes.names
    if name not in names:
        msg = f"there is no product {name!r} to remove; the checkpoint knows {', '.join(names)}"
        raise ValueError(msg)
    if len(names) == 1:
        msg = f"{name!r} is the last product of the checkpoint and cannot be removed; add another one first"
        raise ValueError(msg)
    model.model.calibration.remove(names.index(name))
    model.classes.names = [other for other in names if other != name]
    return _table([], torch.empty(0), torch.empty(0, dtype=torch.long), torch.empty(0))


def _calibrate(model: CCL, datamodule: Any, add: bool) -> pd.DataFrame:  # noqa: ANN401
    datamodule.prepare_data()
    datamodule.setup()
    loader = datamodule.train_dataloader()
    known = model.classes.names
    # Before the pass, which may take long.
    given = _products(model, datamodule, samples_of(loader.dataset), add)
    names = known if given is None else _new_names(known, given) if add else _known_names(known, given)

    def labels_of(embeddings: Tensor) -> Tensor:
        if given is not None:
            return torch.tensor([names.index(name) for name in given])
        nearest = (F.normalize(embeddings, dim=1) @ prototypes.T).argmax(dim=1)
        _known_names(known, [known[label] for label in nearest])
        return nearest

    calibration, prototypes = model.model.calibration, model.model.calibration.prototypes
    before = deepcopy(calibration)
    for learns_usual in (True, False) if calibration.subtract_usual else (False,):
        if learns_usual:  # from whole maps of images as they are
            calibration.usual = calibration.usual[:0]
        views = {} if learns_usual else {"view": calibration_view()}
        model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        embeddings, scores, maps = raw_scores(model, loader, "Normal images", **views)
        model.cpu()
        refuse_nan(scores, "image scores")
        scores, labels = scores.flatten(), labels_of(embeddings)
        if learns_usual:
            usual = torch.stack([maps[labels == label].mean(dim=0) for label in range(len(names))])
        new = {"maps": usual} if calibration.subtract_usual else {}
        if add:
            calibration.load_state_dict(before.state_dict())
            calibration.add(embeddings, scores, labels, **new)
        else:
            calibration.fit(embeddings, scores, labels)
            if learns_usual:
                calibration.learn_usual(usual)
    if add:
        model.classes.names = [*known, *names]
    # The last is that of unknown products.
    limits = calibration.limits()[:-1][-len(names) :]
    return _table(names, scores, labels, limits, calibration.false_alarm_rate)


def _products(model: CCL, datamodule: Any, samples: pd.DataFrame, add: bool) -> list[str] | None:  # noqa: ANN401
    """Tell the product of each image; None where the model tells it itself, because it found its classes so."""
    if model.classes.pseudo_labels and not add:
        return None
    source: ClassLabels = "folder" if model.hparams["class_labels"] == "folder" else "auto"
    found = class_names(samples, source, getattr(datamodule, "category", ""))
    if found is None:
        msg = (
            f"{type(datamodule).__name__} does not tell the product of each image; use MultiCategory, which joins the "
            "categories of any of anomalib's data sets, Folder among them"
        )
        raise ValueError(msg)
    return [found[path] for path in samples["image_path"].astype(str)]


def _new_names(known: list[str], given: list[str]) -> list[str]:
    """The products to add, sorted."""
    names = sorted(set(given))
    if there := [name for name in names if name in known]:
        msg = (
            f"the checkpoint knows {', '.join(there)} already; give images of new products alone with --add, "
            "for example with --data.categories, or remove the old ones first"
        )
        raise ValueError(msg)
    return names


def _known_names(known: list[str], given: list[str]) -> list[str]:
    """The products of a checkpoint, where images were given of each and of no others."""
    if new := sorted({*given} - {*known}):
        msg = f"the checkpoint does not know {', '.join(new)}; add new products with --add, from images of them alone"
        raise ValueError(msg)
    if missing := [name for name in known if name not in {*given}]:
        msg = f"there is no image of {', '.join(missing)}; give normal images of each product, or --remove those first"
        raise ValueError(msg)
    return known


def _table(names: list[str], scores: Tensor, labels: Tensor, limits: Tensor, rate: float = 0.0) -> pd.DataFrame:
    """Count the images above the limit of each product, and say so where they are far more than the rate."""
    rows = []
    for index, (name, limit) in enumerate(zip(names, limits.tolist(), strict=True)):
        above = scores[labels == index] > limit
        rows.append({"product": name, "images": len(above), "limit": limit, "above": above.float().mean().item()})
        # One image of a few is no sign.
        if above.sum() > 1 + 2 * rate * len(above):
            logger.warning(
                "%d of %d images of %s exceed its limit, %g %% were expected: are there defective ones among them?",
                above.sum(),
                len(above),
                name,
                100 * rate,
            )
    return pd.DataFrame(rows, columns=["product", "images", "limit", "above"])


def main() -> None:
    """Read the command line, write the new checkpoint and print what exceeds the new limits."""
    parser = ArgumentParser(
        prog="python -m anomalib_ccl.recalibrate",
        description="Find the prototypes and limits of a trained CCL model anew from normal images, add products to "
        "those that it knows, or forget one, without a training. Writes a new checkpoint.",
    )
    parser.add_argument("--ckpt_path", type=Path, required=True, help="checkpoint of a calibrated CCL model")
    parser.add_subclass_arguments(
        AnomalibDataModule, "data", required=False, help="MultiCategory, or a YAML file as for `anomalib train --data`"
    )
    parser.add_argument("--add", action="store_true", help="the products of --data are new ones")
    parser.add_argument("--remove", metavar="NAME", help="forget a product")
    parser.add_argument("--output", type=Path, help="the new checkpoint; <name>-recalibrated.ckpt if not given")
    run(parser, lambda given: _report(recalibrate(given.ckpt_path, given.data, given.add, given.remove, given.output)))


def _report(made: Recalibrated) -> None:
    if len(made.products):
        table = Table(box=SIMPLE, padding=0, title=f"Limits for {100 * made.false_alarm_rate:g} % of false alarms")
        table.add_column("product", overflow="fold")
        for heading in ("images", "limit", "above, %"):
            table.add_column(heading, justify="right")
        for name, images, limit, above in made.products.itertuples(index=False):
            table.add_row(name, str(images), f"{limit:.4f}", f"{100 * above:.1f}")
        Console().print(table)
    print(f"Written: {made.path}")


if __name__ == "__main__":
    main()
