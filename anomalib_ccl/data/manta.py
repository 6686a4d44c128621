"""MANTA: tiny objects, each seen from five sides (Fan et al., CVPR 2025, https://arxiv.org/abs/2412.04867).

38 categories of five domains. An image file shows one object in five views of equal width side by side, 1280 × 256
pixels in the smaller edition. The data are given out at https://grainnet.github.io/MANTA, and cannot be downloaded by
a program.

*Layout.* As the group that made MANTA and CCL reads it, by ``data/gen_benchmark/manta.py`` in its repository
``LGC-AD/AD-LGC``, each domain has a ``meta.json`` with the lists ``train`` and ``test-pixel``, by category, and paths
that begin with the category::

    mechanics/meta.json                       {"train": {"nut": [{"img_path": "nut/train/good/1.png", "mask_path": "",
    mechanics/nut/train/good/1.png                "specie_name": "good", "anomaly": 0, …}, …]}, "test-pixel": {…}}
    mechanics/nut/test-pixel/good/1.png
    mechanics/nut/test-pixel/<defect>/1.png
    mechanics/nut/test-pixel/mask/1.png

Where there is no ``meta.json``, a category is read in the layout of MVTec AD (``train/good``, ``test/<defect>``,
``ground_truth/<defect>``), in which other public code has the smaller edition. Neither was checked against the data
themselves, which were not at hand.

*Views.* Each view is an image of its own, as in the code of that group: its evaluation calls an image defective if
its mask is anywhere white, and ``LGC-AD/ArcAD`` trains and tests on cropped views. So a view of a defective object on
which the defect cannot be seen is normal, and the figures of a report are those of views. The column ``sample`` has
the file of the object, which is defective if one of its views is.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import LabelName, Split, TestSplitMode, ValSplitMode
from PIL import Image
from tqdm.auto import tqdm

from anomalib_ccl.data.dataset import MultiCategoryDataset
from anomalib_ccl.data.layouts import Layout, Sample, read_layout
from anomalib_ccl.data.reading import read_masks
from anomalib_ccl.data.splits import CategoryImages, tasks
from anomalib_ccl.data.views import VIEWS, cut, view_paths

if TYPE_CHECKING:
    from torchvision.transforms.v2 import Transform

logger = logging.getLogger(__name__)

#: The categories of each domain.
DOMAINS = {
    "electronics": (
        *("block_inductor", "copper_standoff", "flat_nut", "led", "led_pad", "long_button"),
        *("power_inductor", "short_button", "thin_resistor", "type_c", "wafer_resistor"),
    ),
    "mechanics": (
        *("button", "gear", "nut", "nut_cap", "red_washer", "round_button_cap", "screw"),
        *("square_button_cap", "terminal", "wire_cap", "yellow_green_washer"),
    ),
    "grain": ("maize", "paddy", "soybean", "wheat"),
    "groceries": ("coffee_beans", "goji_berries", "pistachios"),
    "medicine": (
        *("capsule", "coated_tablet", "embossed_tablet", "lettered_tablet", "oblong_tablet"),
        *("pink_tablet", "red_tablet", "white_tablet", "yellow_tablet"),
    ),
}
CATEGORIES = tuple(sorted(category for categories in DOMAINS.values() for category in categories))

_TABLE = "meta.json"
_SPLITS = {"train": Split.TRAIN, "test-pixel": Split.TEST}


class MANTADataset(MultiCategoryDataset):
    """The views of a category of MANTA.

    Args:
        root: Folder of the data set, or of one of its domains.
        category: The category.
        augmentations: Transform of image and mask.
        split: ``"train"`` or ``"test"``; all images without it.

    Raises:
        FileNotFoundError: If there is no such category.
        ValueError: If its tables and files do not agree; see :func:`read_manta`.
    """

    def __init__(
        self,
        root: str | Path = "./datasets/MANTA",
        category: str = "maize",
        augmentations: Transform | None = None,
        split: str | Split | None = None,
    ) -> None:
        samples = read_manta(manta_folder(root, category))
        if split is not None:
            samples = samples[samples["split"] == Split(split).value]
        samples.attrs["task"] = tasks({category: samples})[category].value
        super().__init__({category: CategoryImages(samples)}, augmentations)
        self.category = category

    @MultiCategoryDataset.samples.setter  # type: ignore[attr-defined]
    def samples(self, samples: pd.DataFrame) -> None:
        """Set the samples; unlike anomalib, without a look for a file of each, which views do not have."""
        self._samples = samples


class MANTA(AnomalibDataModule):
    """The views of a category of MANTA, as anomalib's datamodules have the images of theirs.

    :class:`~anomalib_ccl.data.MultiCategory` joins all categories: ``dataset: MANTA``.

    Args:
        root: Folder of the data set, or of one of its domains.
        category: The category.
        train_batch_size: Training views in a batch.
        eval_batch_size: Validation or test views in a batch.
        num_workers: Processes that read images.
        train_augmentations: Transform of the training images.
        val_augmentations: Transform of the validation images.
        test_augmentations: Transform of the test images.
        augmentations: Transform for the subsets that have none of their own.
        test_split_mode: How the test images are made.
        test_split_ratio: Part of the training images used for testing, where the test has none.
        val_split_mode: How the validation images are made.
        val_split_ratio: Part of the images used for validation.
        seed: Seed of the splits.

    Raises:
        ValueError: If defects are to be synthetic, which anomalib makes in files that hold one image.
        FileNotFoundError: From ``prepare_data`` and ``setup``, if there is no such category.
        ValueError: From ``setup``, if its tables and files do not agree; see :func:`read_manta`.
    """

    def __init__(
        self,
        root: str | Path = "./datasets/MANTA",
        category: str = "maize",
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 8,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        test_split_mode: TestSplitMode | str = TestSplitMode.FROM_DIR,
        test_split_ratio: float = 0.2,
        val_split_mode: ValSplitMode | str = ValSplitMode.SAME_AS_TEST,
        val_split_ratio: float = 0.5,
        seed: int | None = None,
    ) -> None:
        for name, mode in (("test_split_mode", test_split_mode), ("val_split_mode", val_split_mode)):
            if mode == "synthetic":
                msg = f"{name}: MANTA has no synthetic defects, which anomalib makes of whole files; choose another"
                raise ValueError(msg)
        super().__init__(
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_augmentations=train_augmentations,
            val_augmentations=val_augmentations,
            test_augmentations=test_augmentations,
            augmentations=augmentations,
            test_split_mode=test_split_mode,
            test_split_ratio=test_split_ratio,
            val_split_mode=val_split_mode,
            val_split_ratio=val_split_ratio,
            seed=seed,
        )
        self.root = Path(root)
        self.category = category

    def prepare_data(self) -> None:
        """Look for the data; nothing is downloaded."""
        manta_folder(self.root, self.category)

    def _setup(self, _stage: str | None = None) -> None:
        self.train_data = MANTADataset(self.root, self.category, split=Split.TRAIN)
        self.test_data = MANTADataset(self.root, self.category, split=Split.TEST)


def manta_folder(root: str | Path, category: str) -> Path:
    """Find the folder of a category.

    Args:
        root: Folder of the data set, or of one of its domains.
        category: The category.

    Returns:
        The folder, absolute.

    Raises:
        FileNotFoundError: If there is none.
    """
    root = Path(root).absolute()
    for pattern in (f"*/{category}", category):
        if found := sorted(path for path in root.glob(pattern) if (path / "train").is_dir()):
            return found[0]
    msg = (
        f"there is no folder {root}/<domain>/{category}/train; get MANTA from https://grainnet.github.io/MANTA, it "
        "cannot be downloaded by a program"
    )
    raise FileNotFoundError(msg)


def read_manta(folder: Path) -> pd.DataFrame:
    """Find the views of a category.

    Args:
        folder: The folder of the category.

    Returns:
        A table of :class:`~anomalib_ccl.data.layouts.Sample`, and the column ``sample`` with the file of each view.
        Defective files whose mask is black are left out with a warning, because one of their views must be defective.

    Raises:
        ValueError: If a list or an entry of ``meta.json`` is missing, if a defective file has no mask, or if a mask is
            not as wide as five equal views.
        OSError: If ``meta.json`` cannot be read.
    """
    files = _from_table(folder) if (folder.parent / _TABLE).exists() else _from_folders(folder)
    views: list[tuple[str | int | list[str], ...]] = []
    black = []
    defective = sum(file.label_index == LabelName.ABNORMAL for file in files)
    progress = tqdm(total=defective, desc=f"Reading masks of {folder.name}", disable=None if defective > 100 else True)
    for file in files:
        shown = [False] * VIEWS
        if file.label_index == LabelName.ABNORMAL:
            shown = _defective_views(file)
            progress.update()
            if not any(shown):
                black.append(file.image_path)
                continue
        masks = view_paths(str(file.mask_path))
        for path, mask, defect in zip(view_paths(file.image_path), masks, shown, strict=True):
            seen = (file.label, 1, mask) if defect else ("good", 0, "")
            views.append((path, *seen, file.split, file.image_path))
    progress.close()
    if black:
        logger.warning("Left out %d defective images of %s whose mask is black: %s", len(black), folder, black[0])
    return pd.DataFrame(views, columns=[*Sample._fields, "sample"]).astype({"label_index": int})


def _from_table(folder: Path) -> list[Sample]:
    table = folder.parent / _TABLE
    lists = json.loads(table.read_text(encoding="utf-8"))
    files = []
    for name, split in _SPLITS.items():
        if folder.name not in lists.get(name, {}):
            msg = f"{table} has no list '{name}' of {folder.name}; write it anew"
            raise ValueError(msg)
        for entry in lists[name][folder.name]:
            try:
                path, mask, index = entry["img_path"], entry["mask_path"], int(entry["anomaly"])
                label = entry["specie_name"]
            except KeyError as error:
                msg = f"the entry {entry} of {table} has no {error}"
                raise ValueError(msg) from error
            mask = str(folder.parent / mask) if mask else ""
            files.append(Sample(str(folder.parent / path), label, index, mask, split.value))
    return files


def _from_folders(folder: Path) -> list[Sample]:
    if not (folder / "test").is_dir():
        msg = (
            f"there is no {folder.parent / _TABLE}, which lists the images of its categories; "
            "data/gen_benchmark/manta.py of the authors' repository LGC-AD/AD-LGC writes it"
        )
        raise ValueError(msg)
    return [Sample(*row) for row in read_layout(folder, Layout()).itertuples(index=False)]


def _defective_views(file: Sample) -> list[bool]:
    """On which views of a defective object its mask shows a defect."""
    if not file.mask_path:
        msg = f"the defective image {file.image_path} has no mask, which would tell on which of its views the defect is"
        raise ValueError(msg)
    try:
        with Image.open(str(file.mask_path)) as mask:
            width, height = mask.size
        white = read_masks([str(file.mask_path)], file.image_path, (height, width)).numpy()
    except OSError:  # it is not there, or broken: a later look at it says so, or leaves the image out
        return [True] * VIEWS
    try:
        return [bool(cut(white, number).any()) for number in range(1, VIEWS + 1)]
    except ValueError as error:
        msg = f"the mask {file.mask_path} is not one of MANTA: {error}"
        raise ValueError(msg) from error
