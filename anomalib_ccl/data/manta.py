"""MANTA: tiny objects, each seen from five sides (Fan et al., CVPR 2025, https://arxiv.org/abs/2412.04867).

38 categories of five domains, given out at https://grainnet.github.io/MANTA. An image file shows one object in five
views of equal width side by side, 1280 × 256 pixels in the smaller edition.

*Layout.* As the group that made MANTA and CCL reads it, by ``data/gen_benchmark/manta.py`` in its repository
``LGC-AD/AD-LGC``, each domain has a ``meta.json`` with the lists ``train`` and ``test-pixel``, by category, and paths
that begin with the category::

    mechanics/meta.json                       {"train": {"nut": [{"img_path": "nut/train/good/1.png", "mask_path": "",
    mechanics/nut/train/good/1.png                "specie_name": "good", "anomaly": 0, …}, …]}, "test-pixel": {…}}
    mechanics/nut/test-pixel/<defect>/1.png
    mechanics/nut/test-pixel/mask/1.png

Where there is no ``meta.json``, a category is read in the layout of MVTec AD, in which other public code has the
smaller edition. Neither was checked against the data themselves, which were not at hand.

*Views.* Each view is an image of its own, as in the code of that group: its evaluation calls an image defective if
its mask is anywhere white, and ``LGC-AD/ArcAD`` trains and tests on cropped views. So a view of a defective object on
which the defect cannot be seen is normal, and the figures of a report are those of views. The column ``sample`` has
the file of the object, which is defective if one of its views is.
"""

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
from anomalib.data.utils import LabelName, Split
from tqdm.auto import tqdm

from anomalib_ccl.data.layouts import Layout, Sample, read_layout
from anomalib_ccl.data.masks import read_mask
from anomalib_ccl.data.reading import view_paths
from anomalib_ccl.errors import InputError

logger = logging.getLogger(__name__)

_TABLE = "meta.json"
_SPLITS = {"train": Split.TRAIN, "test-pixel": Split.TEST}


def manta_folder(root: Path, category: str) -> Path:
    """Find the folder of a category in that of the data set or of a domain."""
    for pattern in (f"*/{category}", category):
        if found := sorted(path for path in root.glob(pattern) if (path / "train").is_dir()):
            return found[0]
    raise InputError(f"there is no folder {root}/<domain>/{category}/train")


def read_manta(folder: Path) -> pd.DataFrame:
    """Find the views of a category, a table of samples and a column ``sample`` with the file of each view."""
    files = _from_table(folder) if (folder.parent / _TABLE).exists() else _from_folders(folder)
    views: list[tuple[str | int | list[str], ...]] = []
    black = []
    for file in tqdm(files, f"Reading masks of {folder.name}", disable=None if len(files) > 100 else True):
        paths = view_paths(file.image_path)
        masks, shown = [""] * len(paths), [False] * len(paths)
        if file.label_index == LabelName.ABNORMAL:
            if not file.mask_path:
                msg = f"the defective image {file.image_path} has no mask, which would show on which view the defect is"
                raise InputError(msg)
            masks = view_paths(str(file.mask_path))
            try:
                mask = read_mask(str(file.mask_path))
            except InputError:  # a later look at it says why, or leaves the image out
                mask = np.ones((1, len(paths)))
            # One that is not five views wide is refused by name when that of a view is read.
            shown = [bool(part.any()) for part in np.array_split(mask, len(paths), axis=1)]
            if not any(shown):  # though one of its views must be defective
                black.append(file.image_path)
                continue
        for path, mask_path, defect in zip(paths, masks, shown, strict=True):
            seen = (file.label, 1, mask_path) if defect else ("good", 0, "")
            views.append((path, *seen, file.split, file.image_path))
    if black:
        logger.warning("Left out %d defective images of %s whose mask is black: %s", len(black), folder, black[0])
    return pd.DataFrame(views, columns=[*Sample._fields, "sample"]).astype({"label_index": int})


def _from_table(folder: Path) -> list[Sample]:
    table = folder.parent / _TABLE
    files = []
    try:
        lists = json.loads(table.read_text(encoding="utf-8"))
        for name, split in _SPLITS.items():
            for entry in lists[name][folder.name]:
                path, mask = (entry[key] and str(folder.parent / entry[key]) for key in ("img_path", "mask_path"))
                files.append(Sample(path, entry["specie_name"], int(entry["anomaly"]), mask, split.value))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{table} does not list images of {folder.name} ({error!r}); write it anew") from error
    return files


def _from_folders(folder: Path) -> list[Sample]:
    if not (folder / "test").is_dir():
        msg = (
            f"there is no {folder.parent / _TABLE}, which lists the images of its categories; "
            "data/gen_benchmark/manta.py of the authors' repository LGC-AD/AD-LGC writes it"
        )
        raise InputError(msg)
    return [Sample(*row) for row in read_layout(folder, Layout()).itertuples(index=False)]
