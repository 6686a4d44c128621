"""Limits found anew, products added and forgotten, without a training.

The command ``anomalib-ccl recalibrate --help`` explains how; from Python:

Example:
    >>> from anomalib_ccl.recalibrate import recalibrate
    >>> recalibrate("model.ckpt", MultiCategory(root="new_products"), add=True).path  # doctest: +SKIP
    PosixPath('model-recalibrated.ckpt')
"""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import LabelName
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from anomalib_ccl.classes.clustering import pseudo_classes
from anomalib_ccl.classes.labels import ClassLabels, class_names
from anomalib_ccl.data.multi_category import share_ranges
from anomalib_ccl.data.passes import Passes
from anomalib_ccl.data.samples import samples_of
from anomalib_ccl.errors import InputError
from anomalib_ccl.export.checkpoint import forget_progress, read_checkpoint, write_checkpoint
from anomalib_ccl.lightning_model import CCL
from anomalib_ccl.training.calibrate import calibrate

# Measured with 17 products, 10 to 50 images of each, new to a model of three others: the images of one product reach
# 0.06 to 0.59, but for three views of one (0.69) and, in one of two recipes, two others (0.64 and 0.66); those of two
# or three products together 0.61 to 0.96, but for one pair (0.45). Scores by the memory do not tell: a mixture of three
# products has a median like that of one product.
_MIN_SILHOUETTE = 0.6


class Product(NamedTuple):
    """A product, how many of its images were seen, its limit (a raw score), and the share of them that exceed it.

    ``groups`` is how many kinds of images a new product seems to have, 1 for a known one.
    """

    name: str
    images: int
    limit: float
    above: float
    groups: int = 1


class Recalibrated(NamedTuple):
    """A new checkpoint, the products that limits were found for (none with ``remove``), and the rate of the limits.

    ``left_out`` counts the normal images that the datamodule keeps for a validation or a test.
    """

    path: Path
    products: list[Product]
    false_alarm_rate: float
    left_out: int


def recalibrate(
    ckpt_path: str | Path,
    datamodule: AnomalibDataModule | None = None,
    add: bool = False,
    remove: str | None = None,
    output: str | Path | None = None,
    reconstruction: str | None = None,
) -> Recalibrated:
    """Find prototypes and limits anew from normal images, add products or forget one, and write a new checkpoint.

    The weights stay as they are. Of the datamodule, the training images alone are taken. Without ``add`` and
    ``remove``, all products that the checkpoint knows are calibrated anew, as when the light has changed. With ``add``,
    those of the datamodule come behind the known ones, which stay to the bit. With ``remove``, one is forgotten, and
    the others stay to the bit. The checkpoint of a training that was killed or failed becomes complete without either.
    """
    if (datamodule is None) == (remove is None) or (add and remove is not None):
        msg = "give either --data, with normal images of the products to calibrate or --add, or --remove NAME"
        raise InputError(msg)
    ckpt_path = Path(ckpt_path)
    path = ckpt_path.with_name(f"{ckpt_path.stem}-recalibrated.ckpt") if output is None else Path(output)
    if path.exists() or not path.parent.is_dir():
        fault = "is there already and is not overwritten" if path.exists() else "lies in a folder that is not there"
        msg = f"{path} {fault}; give another file with --output"
        raise InputError(msg)
    model = CCL.load_from_checkpoint(ckpt_path, evaluator=False, visualizer=False, reconstruction=reconstruction).eval()
    calibration, known = model.model.calibration, model.class_names
    completes = model.calibrate and not (datamodule is None or add or model.classes.pseudo_labels)
    if not (calibration.is_calibrated or completes):
        way = "resume its training with `anomalib fit --ckpt_path`"
        if not model.calibrate:
            way = "it was trained with calibrate=False, so train one without that"
        msg = f"{ckpt_path} is not calibrated, so it knows no products; {way}"
        raise InputError(msg)

    products: list[Product] = []
    left_out = 0
    if datamodule is not None:
        products, left_out = _calibrate(model, datamodule, add), _left_out(datamodule)
        names = [*known, *(product.name for product in products)] if add else known
    elif remove in known:
        calibration.remove(known.index(remove))
        model.model.memory.remove(known.index(remove))
        names = [name for name in known if name != remove]
    else:
        msg = f"there is no product {remove!r} to remove; the checkpoint knows {', '.join(known)}"
        raise InputError(msg)

    checkpoint = read_checkpoint(ckpt_path)
    state = model.cpu().state_dict()
    changed = [name for name in state if name.startswith(("model.calibration.", "model.memory."))]
    checkpoint["state_dict"] |= {name: state[name] for name in changed}
    checkpoint["training_classes"]["names"] = names
    forget_progress(checkpoint)
    write_checkpoint(checkpoint, path)
    return Recalibrated(path, products, calibration.false_alarm_rate, left_out)


def _calibrate(model: CCL, datamodule: AnomalibDataModule, add: bool) -> list[Product]:
    """Calibrate a model by the training images of a datamodule."""
    datamodule.prepare_data()
    datamodule.setup("fit")
    loader = datamodule.train_dataloader()
    share_ranges(datamodule, model.pixel_ranges)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    passes = Passes(loader, model.pre_processor, model.device)
    if model.classes.pseudo_labels and not add:
        names = model.class_names
        index_of = _nearest(model, passes)
    else:
        given = _products(model, datamodule, loader)
        names = _names(model.class_names, given.values(), add)
        index_of = {path: names.index(name) for path, name in given.items()}
    found = calibrate(model.model, passes.labelled(lambda paths: torch.tensor([index_of[p] for p in paths])), add)
    # The last limit is that of unknown products.
    limits = model.model.calibration.limits[:-1][-len(names) :]
    products = []
    for index, (name, limit) in enumerate(zip(names, limits, strict=True)):
        own = found.labels == index
        above = (found.scores[own] > limit).float().mean().item()
        groups = _groups(found.embeddings[own]) if add else 1
        products.append(Product(name, int(own.sum()), limit.item(), above, groups))
    return products


def _groups(embeddings: Tensor) -> int:
    """Count the groups into which the images of a product plainly fall."""
    found = pseudo_classes(F.normalize(embeddings, dim=1).cpu().numpy())
    return int(found.labels.max()) + 1 if found.silhouette >= _MIN_SILHOUETTE else 1


def _left_out(datamodule: AnomalibDataModule) -> int:
    """Count the normal images that are not among the training images."""
    subsets = [getattr(datamodule, f"{name}_data", None) for name in ("train", "val", "test")]
    tables = [samples_of(subset) for subset in subsets if subset is not None]
    train, *others = [set(table["image_path"][table["label_index"] == LabelName.NORMAL]) for table in tables]
    return len(set().union(*others) - train)


@torch.no_grad()
def _nearest(model: CCL, passes: Passes) -> dict[str, int]:
    """Find the class whose prototype is nearest to each image, of a model that found its classes itself."""
    prototypes = model.model.calibration.prototypes
    found: dict[str, int] = {}
    for seen in passes("Classes"):
        embeddings = F.normalize(model.model(seen.images).embedding.float(), dim=1)
        found |= dict(zip(seen.paths, (embeddings @ prototypes.T).argmax(dim=1).tolist(), strict=True))
    _names(model.class_names, {model.class_names[index] for index in found.values()}, add=False)
    return found


def _products(model: CCL, datamodule: AnomalibDataModule, loader: DataLoader) -> dict[str, str]:
    """Look up the product of each image, by its path."""
    source: ClassLabels = "folder" if model.hparams["class_labels"] == "folder" else "auto"
    found = class_names(samples_of(loader.dataset), source, getattr(datamodule, "category", ""))
    if found is None:
        msg = (
            f"{type(datamodule).__name__} does not know the product of each image; use MultiCategory, which joins the "
            "categories of any of anomalib's data sets, Folder among them"
        )
        raise InputError(msg)
    return found


def _names(known: list[str], given: Collection[str], add: bool) -> list[str]:
    """The products to calibrate: those of the checkpoint where each has images and no others have, or new ones."""
    new, there = sorted({*given} - {*known}), [name for name in known if name in given]
    missing = [name for name in known if name not in given]
    if add and there:
        msg = (
            f"the checkpoint knows {', '.join(there)} already; give images of new products alone with --add, "
            "for example with --data.categories, or remove the old ones first"
        )
    elif not add and new:
        msg = f"the checkpoint does not know {', '.join(new)}; add new products with --add, from images of them alone"
    elif not add and missing:
        msg = f"there is no image of {', '.join(missing)}; give normal images of each product, or --remove those first"
    else:
        return new if add else known
    raise InputError(msg)
