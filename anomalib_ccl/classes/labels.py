"""Which class a training image has: its category, the folder it lies in, or one that must be found."""

import os
from pathlib import Path
from typing import Literal

from pandas import DataFrame

from anomalib_ccl.errors import InputError

ClassLabels = Literal["auto", "category", "folder", "pseudo"]


def class_names(samples: DataFrame, source: ClassLabels = "auto", category: str = "") -> dict[str, str] | None:
    """Look up the class of each training image.

    Args:
        samples: One row per image with the columns ``image_path`` and, where the datamodule knows it, ``category``.
        source: Where the class comes from. ``"category"`` is what the datamodule tells: that column, or else
            ``category``. ``"folder"`` is the first folder in which the paths of the images differ, or the last that
            they share. ``"pseudo"`` is to be found by clustering. ``"auto"`` is the category where the datamodule
            tells it, else pseudo.
        category: The one category of all images, where the datamodule knows it.

    Returns:
        The class name of each image, by its path, or None where pseudo-classes must be found.

    Raises:
        InputError: If the category is asked for and nobody tells it.

    Example:
        >>> samples = DataFrame({"image_path": ["data/bolt/good/1.png", "data/nut/good/1.png"]})
        >>> class_names(samples, "folder")
        {'data/bolt/good/1.png': 'bolt', 'data/nut/good/1.png': 'nut'}
        >>> class_names(samples, "auto") is None
        True
    """
    paths = samples["image_path"].astype(str)
    if source == "folder":
        root = os.path.commonpath([Path(path).parent for path in paths])
        return {path: next(iter(Path(path).parent.relative_to(root).parts), Path(root).name) for path in paths}
    if source == "pseudo":
        return None
    if "category" in samples:
        return dict(zip(paths, samples["category"].astype(str), strict=True))
    if category:
        return dict.fromkeys(paths, category)
    if source == "category":
        msg = (
            "class_labels='category' needs a datamodule that knows the category of each image, such as MultiCategory; "
            "with this one use 'folder', 'pseudo' or 'auto'"
        )
        raise InputError(msg)
    return None
