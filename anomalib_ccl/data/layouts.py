"""How the data sets lay out the images and masks of a category: one table of samples for each."""

from __future__ import annotations

import csv
import json
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from anomalib.data.utils import LabelName, Split
from anomalib.data.utils.path import DirType

from anomalib_ccl.data.files import images_in
from anomalib_ccl.data.masks import pair_masks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from anomalib.data import AnomalibDataModule

logger = logging.getLogger(__name__)

Dirs = str | Path | list[str | Path] | None


class Sample(NamedTuple):
    """An image as the tables of samples have it.

    Attributes:
        image_path: Its path, by which it is known everywhere.
        label: The folder that tells what it shows.
        label_index: 0 for normal, 1 for defective, -1 where nobody knows.
        mask_path: The path of its mask, a list of those of its masks, or ``""``.
        split: ``"train"``, ``"val"`` or ``"test"``.
    """

    image_path: str
    label: str
    label_index: int
    mask_path: str | list[str]
    split: str


class Layout(NamedTuple):
    """Folders inside that of a category: ``<split>/<label>/<images>``, and the masks.

    Attributes:
        normal: Label of the normal images.
        splits: The folders of the splits.
        masks: Folder of the masks of a label's images; ``*`` is the label.
        optional: Folders of test images, one of which may be among the splits; images may lie in it without a label.
    """

    normal: str = "good"
    splits: Mapping[str, Split] = {"train": Split.TRAIN, "test": Split.TEST}
    masks: tuple[str, ...] = ("ground_truth", "*")
    optional: tuple[str, ...] = ()


_VALIDATED = {"train": Split.TRAIN, "validation": Split.VAL}
#: Those of anomalib's data sets that are not in the layout of MVTec AD, which is the default of all fields.
LAYOUTS = {
    "BTech": Layout(normal="ok"),
    "BMAD": Layout(
        splits={"train": Split.TRAIN, "valid": Split.VAL, "test": Split.TEST}, masks=("<split>", "*", "label")
    ),
    "MVTecLOCO": Layout(splits={**_VALIDATED, "test": Split.TEST}),
    "MVTecAD2": Layout(
        splits={**_VALIDATED, "test_public": Split.TEST},
        masks=("test_public", "ground_truth", "*"),
        optional=("test_public", "test_private", "test_private_mixed"),
    ),
}


def read_layout(folder: Path, layout: Layout) -> pd.DataFrame:
    """Find the samples of a category whose folders tell splits and labels.

    Args:
        folder: The folder of the category.
        layout: What lies where in it.

    Returns:
        A table of :class:`Sample`. Images that are not where the layout has any are left out with a warning.

    Raises:
        ValueError: If a mask and an image do not find each other; see :func:`~anomalib_ccl.data.masks.pair_masks`.
    """
    images: dict[tuple[str, str], dict[Path, Path]] = {}
    masks: dict[tuple[str, str], dict[Path, Path]] = {}
    strange = []
    for path in images_in(folder):
        parts = path.relative_to(folder).parts
        split, label = parts[0], parts[1] if len(parts) > 2 else ""
        if (of := _masked_label(parts[:-1], layout)) is not None:
            masks.setdefault(of, {})[path] = Path(*parts[len(layout.masks) :])
        elif split in layout.splits and (label or split in layout.optional):
            images.setdefault((split, label), {})[path] = Path(*parts[2:]) if label else Path(parts[-1])
        elif split not in layout.optional:
            strange.append(path)
    samples = []
    for (split, label), found in images.items():
        paired: dict[Path, list[Path]] = {}
        index = LabelName.UNKNOWN if not label else LabelName.NORMAL if label == layout.normal else LabelName.ABNORMAL
        if index == LabelName.ABNORMAL and layout.splits[split] != Split.TRAIN:
            key = (split if layout.masks[0] == "<split>" else "", label)
            paired = pair_masks(found, masks.pop(key, {}), folder / split / label)
        samples += _samples(found, label or "unknown", index, layout.splits[split], paired)
    for (split, label), left in masks.items():
        if label != layout.normal:  # masks of normal images are black, and needless
            pair_masks({}, left, folder / (split or next(iter(layout.splits))) / label)
    _warn_of_strange(strange, folder, layout)
    return _table(samples)


def read_folders(  # the arguments of anomalib's Folder
    root: Path,
    normal_dir: Dirs,
    abnormal_dir: Dirs = None,
    normal_test_dir: Dirs = None,
    mask_dir: Dirs = None,
    extensions: Iterable[str] | None = None,
) -> pd.DataFrame:
    """Find the samples of a product whose folders are named in the configuration, as for anomalib's ``Folder``.

    Args:
        root: The folder of the product.
        normal_dir: Folder, or folders, of the normal images.
        abnormal_dir: Folder, or folders, of the defective images; a product need not have them.
        normal_test_dir: Folder, or folders, of normal images for the test.
        mask_dir: Folder, or folders, of the masks. As many as those of the defective images are theirs one by one.
        extensions: Suffixes of images, such as ``.png``. ``None`` takes all that are known.

    Returns:
        A table of :class:`Sample`.

    Raises:
        ValueError: If a mask and an image do not find each other; see :func:`~anomalib_ccl.data.masks.pair_masks`.
    """
    suffixes = None if extensions is None else {suffix.lower() for suffix in extensions}

    def find(folder: Path, base: Path) -> dict[Path, Path]:
        found = [path for path in images_in(folder) if suffixes is None or path.suffix.lower() in suffixes]
        return {path: path.relative_to(base) for path in found}

    defective, masks = _folders(root, abnormal_dir), _folders(root, mask_dir)
    pairs: list[tuple[dict[Path, Path], dict[Path, Path], Path]]
    if len(defective) == len(masks):
        pairs = [(find(image, image), find(mask, mask), image) for image, mask in zip(defective, masks, strict=True)]
    else:
        all_images = {k: v for folder in defective for k, v in find(folder, folder.parent).items()}
        all_masks = {k: v for folder in masks for k, v in find(folder, folder).items()}
        pairs = [(all_images, all_masks, root)]
    samples = []
    for images, of_images, folder in pairs:
        paired = pair_masks(images, of_images, folder)
        samples += _samples(images, DirType.ABNORMAL.value, LabelName.ABNORMAL, Split.TEST, paired)
    for dirs, label, split in (
        (normal_dir, DirType.NORMAL, Split.TRAIN),
        (normal_test_dir, DirType.NORMAL_TEST, Split.TEST),
    ):
        for folder in _folders(root, dirs):
            samples += _samples(find(folder, folder), label.value, LabelName.NORMAL, split, {})
    return _table(samples)


def read_real_iad(folder: Path, table: Path) -> pd.DataFrame:
    """Find the samples of a category of Real-IAD.

    Args:
        folder: The folder of the category.
        table: The JSON file with its splits.

    Returns:
        A table of :class:`Sample`.

    Raises:
        OSError: If the JSON file cannot be read.
    """
    splits = json.loads(table.read_text(encoding="utf-8"))
    samples = []
    for split in (Split.TRAIN, Split.TEST):
        for entry in splits.get(split.value, []):
            mask = str(folder / entry["mask_path"]) if entry.get("mask_path") else ""
            index = LabelName.NORMAL if entry["anomaly_class"] == "OK" else LabelName.ABNORMAL
            path = str(folder / entry["image_path"])
            samples.append(Sample(path, entry["anomaly_class"], int(index), mask, split.value))
    return _table(samples)


def read_raw_visa(root: Path, category: str) -> pd.DataFrame:
    """Find the samples of a category of VisA as it is downloaded; anomalib would make a copy of all its files first.

    Args:
        root: The folder of the data set.
        category: The category.

    Returns:
        A table of :class:`Sample`.

    Raises:
        OSError: If the file with the splits, ``split_csv/1cls.csv``, cannot be read.
    """
    samples = []
    with (root / "split_csv" / "1cls.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["object"] == category:
                index = LabelName.NORMAL if row["label"] == "normal" else LabelName.ABNORMAL
                mask = str(root / row["mask"]) if row["mask"] else ""
                samples.append(Sample(str(root / row["image"]), row["label"], int(index), mask, row["split"]))
    return _table(samples)


def read_by_anomalib(datamodule: AnomalibDataModule) -> pd.DataFrame:
    """Find the samples of a category as anomalib does, for Kaputt, whose categories are values in a table.

    Args:
        datamodule: anomalib's datamodule of the category.

    Returns:
        A table of :class:`Sample`.
    """
    with warnings.catch_warnings():
        # With the string type of pandas 3 anomalib 2.7 fails.
        warnings.filterwarnings("ignore", message=".*future.infer_string")
        with pd.option_context("future.infer_string", False):
            datamodule._setup()
    subsets = [getattr(datamodule, f"{split.value}_data", None) for split in (Split.TRAIN, Split.VAL, Split.TEST)]
    return pd.concat([subset.samples for subset in subsets if subset is not None], ignore_index=True)


def _masked_label(folders: tuple[str, ...], layout: Layout) -> tuple[str, str] | None:
    """The split, where it has masks of its own, and the label that the masks in a folder are for."""
    if len(folders) < len(layout.masks):
        return None
    split = label = ""
    for name, pattern in zip(folders, layout.masks, strict=False):
        if pattern == "*":
            label = name
        elif pattern == "<split>" and name in layout.splits:
            split = name
        elif pattern != name:
            return None
    return split, label


def _samples(
    images: Iterable[Path], label: str, index: LabelName, split: Split, masks: Mapping[Path, list[Path]]
) -> list[Sample]:
    samples = []
    for image in images:
        paths = [str(path) for path in masks.get(image, [])]
        samples.append(Sample(str(image), label, int(index), paths if len(paths) > 1 else "".join(paths), split.value))
    return samples


def _table(samples: list[Sample]) -> pd.DataFrame:
    columns: Any = Sample._fields
    table = pd.DataFrame(samples, columns=columns).astype({"label_index": int})
    return table.sort_values("image_path", ignore_index=True)


def _folders(root: Path, dirs: Dirs) -> list[Path]:
    if dirs is None:
        return []
    return [root / folder for folder in ([dirs] if isinstance(dirs, str | Path) else dirs)]


def _warn_of_strange(paths: list[Path], folder: Path, layout: Layout) -> None:
    if paths:
        logger.warning(
            "Left out %d images in %s that lie in none of its folders %s, such as %s",
            len(paths),
            folder,
            ", ".join(f"{split}/<label>" for split in layout.splits),
            paths[0],
        )
