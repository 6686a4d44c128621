"""How folders lay out the images and masks of a category: one table of samples for each.

Public data sets are read by anomalib, but for those in which it pairs masks by their position in a sorted list or fails
where one is missing: products of one's own are laid out like them.
"""

import json
import logging
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import LabelName, Split
from anomalib.data.utils.path import DirType
from torchvision.datasets.folder import IMG_EXTENSIONS

from anomalib_ccl.data.pairing import pair_masks
from anomalib_ccl.data.reading import file_of
from anomalib_ccl.errors import InputError

logger = logging.getLogger(__name__)

Dirs = str | Path | list[str | Path] | None
#: Arguments of anomalib's ``Folder`` that name folders.
DIRS = ("normal_dir", "abnormal_dir", "normal_test_dir", "mask_dir")
#: Of images that are not read.
OTHER_SUFFIXES = (".gif", ".jfif", ".jpe", ".jp2", ".heic", ".heif", ".avif", ".dng", ".exr", ".npy")


class Sample(NamedTuple):
    """An image; ``label`` names its folder, ``label_index`` is 1 if defective, ``mask_path`` may be empty."""

    image_path: str
    label: str
    label_index: int
    mask_path: str | list[str]
    split: str


class Layout(NamedTuple):
    """Folders inside that of a category, ``<split>/<label>``, and those of the masks; the defaults are of MVTec AD."""

    normal: str = "good"
    splits: Mapping[str, Split] = {"train": Split.TRAIN, "test": Split.TEST}
    masks: str = "ground_truth/{label}"


#: Those of the sets in this layout that differ from MVTec AD.
LAYOUTS = {
    "BTech": Layout(normal="ok"),
    "BMAD": Layout(
        splits={"train": Split.TRAIN, "valid": Split.VAL, "test": Split.TEST}, masks="{split}/{label}/label"
    ),
    "MVTecLOCO": Layout(splits={"train": Split.TRAIN, "validation": Split.VAL, "test": Split.TEST}),
}


def read_layout(folder: Path, layout: Layout) -> pd.DataFrame:
    """Find the samples of a category whose folders say splits and labels, with a warning of images elsewhere."""
    samples = []
    seen: set[Path] = set()
    for name, split in layout.splits.items():
        for place in sorted(path for path in (folder / name).glob("[!.]*") if path.is_dir()):
            label = place.name
            if label != layout.normal and label.lower() == layout.normal:
                raise InputError(f"{place} would count as defective; rename it {layout.normal}, or otherwise")
            mask_place = folder / layout.masks.format(split=name, label=label)
            masks = {path: path.relative_to(mask_place) for path in images_in(mask_place)}
            images = {path: path.relative_to(place) for path in images_in(place) if path not in masks}
            index = LabelName.NORMAL if label == layout.normal else LabelName.ABNORMAL
            # Normal images need no masks, and defective ones in the training are left out later.
            needs_masks = index == LabelName.ABNORMAL and split != Split.TRAIN
            paired = pair_masks(images, masks, place) if needs_masks else {}
            samples += _samples(images, label, index, split, paired)
            seen.update(images, masks if split != Split.TRAIN else ())
    left = [path for path in images_in(folder) if path not in seen]
    truth, normal = folder / "ground_truth", folder / "ground_truth" / layout.normal
    orphans = {path: path.relative_to(truth) for path in left if truth in path.parents and normal not in path.parents}
    pair_masks({}, orphans, folder / "test")  # which names the first
    if strange := [path for path in left if truth not in path.parents]:
        where = ", ".join(f"{name}/<label>" for name in layout.splits)
        msg = "Left out %d images in %s that lie in none of its folders %s, such as %s"
        logger.warning(msg, len(strange), folder, where, strange[0])
    return _table(samples)


def read_folders(  # the arguments of anomalib's Folder
    root: Path,
    normal_dir: Dirs,
    abnormal_dir: Dirs = None,
    normal_test_dir: Dirs = None,
    mask_dir: Dirs = None,
    extensions: Iterable[str] | None = None,
) -> pd.DataFrame:
    """Find the samples of a product whose folders are named in the configuration, as for anomalib's ``Folder``."""
    suffixes = tuple(suffix.lower() for suffix in listed(extensions)) or IMG_EXTENSIONS
    defective, masks = _folders(root, abnormal_dir), _folders(root, mask_dir)
    mask_files = {path for folder in masks for path in images_in(folder, suffixes)}

    def find(folder: Path, base: Path, *, of_masks: bool = False) -> dict[Path, Path]:
        found = images_in(folder, suffixes)
        return {path: path.relative_to(base) for path in found if (path in mask_files) == of_masks}

    if len(defective) == len(masks):  # each has its own
        both = zip(defective, masks, strict=True)
        pairs = [(find(image, image), find(mask, mask, of_masks=True), image) for image, mask in both]
    else:
        all_images = {k: v for folder in defective for k, v in find(folder, folder.parent).items()}
        all_masks = {k: v for folder in masks for k, v in find(folder, folder, of_masks=True).items()}
        pairs = [(all_images, all_masks, root)]
    samples = []
    for images, of_images, folder in pairs:
        paired = pair_masks(images, of_images, folder)
        samples += _samples(images, DirType.ABNORMAL.value, LabelName.ABNORMAL, Split.TEST, paired)
    for dirs, kind, split in (
        (normal_dir, DirType.NORMAL, Split.TRAIN),
        (normal_test_dir, DirType.NORMAL_TEST, Split.TEST),
    ):
        for folder in _folders(root, dirs):
            samples += _samples(find(folder, folder), kind.value, LabelName.NORMAL, split, {})
    return _table(samples)


def check_folders(arguments: Mapping[str, Any]) -> None:
    """Check the folders and suffixes in the arguments of anomalib's ``Folder``."""
    for key in DIRS:
        for name in listed(arguments.get(key)):
            if Path(name).is_absolute() or not Path(name).parts or ".." in Path(name).parts:
                raise InputError(f"{key} '{name}' is no folder inside that of each category, such as good")
    for suffix in listed(arguments.get("extensions")):
        if suffix.lower() not in IMG_EXTENSIONS:
            raise InputError(f"extension '{suffix}' is not one of images that are read: {', '.join(IMG_EXTENSIONS)}")


def read_real_iad(folder: Path, table: Path) -> pd.DataFrame:
    """Find the samples of a category of Real-IAD in its JSON file; anomalib takes 20 times as long, 35 s for all."""
    samples = []
    try:
        splits = json.loads(table.read_text(encoding="utf-8"))
        for split in ("train", "test"):
            for entry in splits.get(split, []):
                mask = str(folder / entry["mask_path"]) if entry.get("mask_path") else ""
                label = entry["anomaly_class"]
                samples.append(Sample(str(folder / entry["image_path"]), label, int(label != "OK"), mask, split))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{table} does not list images as Real-IAD does ({error!r}); get it anew") from error
    return _table(samples)


def read_by_anomalib(datamodule: AnomalibDataModule) -> pd.DataFrame:
    """Find the samples of a category as anomalib's datamodule does."""
    with warnings.catch_warnings():
        # With the string type of pandas 3 anomalib 2.7 fails.
        warnings.filterwarnings("ignore", message=".*future.infer_string")
        with pd.option_context("future.infer_string", False):
            datamodule._setup()  # setup() would split them too, which is done later, with the task known
    subsets = [getattr(datamodule, f"{split.value}_data", None) for split in Split]
    samples = pd.concat([subset.samples for subset in subsets if subset is not None], ignore_index=True)
    return samples.assign(mask_path=samples["mask_path"].fillna(""))


def images_in(folder: Path, suffixes: tuple[str, ...] = IMG_EXTENSIONS) -> list[Path]:
    """Find the images in a folder and in those inside it, sorted; what links lead to is named by its place here."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        here = Path(place)
        if here.is_symlink() and here.resolve() in [above.resolve() for above in here.parents]:
            folders.clear()  # a link to a folder above it, which would be read for ever
            continue
        # Hidden files are no images: macOS leaves a ``._1.png`` next to each ``1.png``.
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        names = [name for name in files if not name.startswith(".") and name.lower().endswith(suffixes)]
        found += [here / name for name in names]
    return sorted(found)


def check_files(paths: Iterable[str], what: str) -> None:
    """Check that the files of ``what`` are there."""
    for path in map(Path, dict.fromkeys(file_of(path)[0] for path in paths)):
        if not path.exists():
            where = f", a link to {path.readlink()}, which is not there" if path.is_symlink() else " is not there"
            way_out = "bring it back or remove it, or skip such images with skip_corrupt=true"
            raise InputError(f"{path}{where}: {what} needs it; {way_out}")


def _samples(
    images: Iterable[Path], label: str, index: LabelName, split: Split, masks: Mapping[Path, list[Path]]
) -> list[Sample]:
    samples = []
    for image in images:
        paths = [str(path) for path in masks.get(image, [])]
        samples.append(Sample(str(image), label, int(index), paths if len(paths) > 1 else "".join(paths), split.value))
    return samples


def _table(samples: list[Sample]) -> pd.DataFrame:
    table = pd.DataFrame(samples, columns=list(Sample._fields)).astype({"label_index": int})
    return table.sort_values("image_path", ignore_index=True)


def listed(values: Any) -> list[Any]:  # noqa: ANN401  # of any kind
    """List one value, several or none."""
    return [] if values is None else [values] if isinstance(values, str | Path) else list(values)


def _folders(root: Path, dirs: Dirs) -> list[Path]:
    return [root / path for path in listed(dirs)]
