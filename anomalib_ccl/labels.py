"""Which class a training image has: its category, or the folder it lies in."""

import os
from pathlib import Path
from typing import Literal

from pandas import DataFrame

ClassLabels = Literal["auto", "category", "folder"]


def class_names(samples: DataFrame, source: ClassLabels = "auto") -> dict[str, str]:
    """Find the class of each training image.

    Args:
        samples: One row per image with the columns ``image_path`` and, where the datamodule knows it, ``category``.
        source: Where the class comes from. ``"category"`` is the column of that name. ``"folder"`` is the first
            folder in which the paths of the images differ. ``"auto"`` is the category where there is one; otherwise
            all images are of one class.

    Returns:
        The class name of each image, by its path.

    Raises:
        ValueError: If the category is asked for and the samples have none.

    Example:
        >>> samples = DataFrame({"image_path": ["data/bolt/good/1.png", "data/nut/good/1.png"]})
        >>> class_names(samples, "folder")
        {'data/bolt/good/1.png': 'bolt', 'data/nut/good/1.png': 'nut'}
        >>> set(class_names(samples, "auto").values())
        {''}
    """
    paths = samples["image_path"].astype(str)
    if source == "folder":
        root = os.path.commonpath([Path(path).parent for path in paths])
        return {path: next(iter(Path(path).parent.relative_to(root).parts), "") for path in paths}
    if "category" in samples:
        return dict(zip(paths, samples["category"].astype(str), strict=True))
    if source == "category":
        msg = (
            "class_labels='category' needs a datamodule that knows the category of each image, such as MultiCategory; "
            "with this one use 'folder' or 'auto'"
        )
        raise ValueError(msg)
    return dict.fromkeys(paths, "")
