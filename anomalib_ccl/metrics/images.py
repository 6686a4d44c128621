"""What is known of the images of a test or a prediction before it starts."""

import os
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from anomalib.data.utils import LabelName


class PassImages:
    """The categories and labels of images, and the places of their heatmaps.

    Args:
        datasets: What is tested or predicted, as :func:`~anomalib_ccl.data.samples.datasets_of` finds it. Data sets of
            anomalib tell category and label of each image, a :class:`~anomalib.data.PredictDataset` only its images,
            any others nothing.
        folder: The folder that is predicted, absolute, where it is known.
        category: The category of all images whose data set tells none.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from anomalib.data import PredictDataset
        >>> with TemporaryDirectory() as root:
        ...     for name in ("line1/a.png", "line2/a.png"):
        ...         Path(root, name).parent.mkdir()
        ...         Path(root, name).touch()
        ...     images = PassImages([PredictDataset(root)])
        >>> images.place(f"{root}/line2/a.png").as_posix(), images.defective(f"{root}/line2/a.png")
        ('line2/a.png', None)
    """

    def __init__(self, datasets: Iterable[Any], folder: str | None = None, category: str = "") -> None:
        self._default = category
        self._known: dict[str, tuple[str, int]] = {}  # category and label
        folders: dict[str, set[Path]] = defaultdict(set)
        for dataset in datasets:
            samples = getattr(dataset, "samples", None)
            if samples is None:
                folders[""] |= {_absolute(path).parent for path in getattr(dataset, "image_filenames", ())}
                continue
            categories = samples["category"] if "category" in samples else [""] * len(samples)
            for path, name, label in zip(samples["image_path"], categories, samples["label_index"], strict=True):
                self._known[str(path)] = (str(name), int(label))
                # The last folder is kept, which tells the defect, also where all images are in one.
                folders[str(name)].add(_absolute(path).parent.parent)
        self._roots: dict[str, str] = {}
        for name, paths in folders.items():
            with suppress(ValueError):  # none in common, on different drives
                self._roots[name] = os.path.commonpath(paths)
        if folder is not None:
            self._roots[""] = folder

    def category(self, path: str) -> str:
        """Look up the category of an image.

        Args:
            path: The image.

        Returns:
            Its name; empty if it is not known.
        """
        return self._known.get(path, ("", 0))[0] or self._default

    def defective(self, path: str, told: bool | None = None) -> bool | None:
        """Look up whether an image is defective.

        Args:
            path: The image.
            told: What its batch tells. A batch cannot tell that the label of one of its images is not known.

        Returns:
            Whether it is; None if it is not known.
        """
        if path not in self._known:
            return told
        label = self._known[path][1]
        return None if label == LabelName.UNKNOWN else label == LabelName.ABNORMAL

    def place(self, path: str) -> Path:
        """Tell where the heatmap of an image goes.

        Args:
            path: The image.

        Returns:
            A relative path: that of the image in the folder that is predicted or, if that is not known, in the folder
            that holds all images. For a labelled image, that in the folder of its category's test images
            (``good/000.png``), behind the name of its category if the data set tells one (``bottle/good/000.png``).
            For an image that is in none of these, its last folder and its name.
        """
        name = self._known.get(path, ("", 0))[0]
        absolute, root = _absolute(path), self._roots.get(name)
        if root is None or not absolute.is_relative_to(root):
            return Path(name, absolute.parent.name, absolute.name)
        return name / absolute.relative_to(root)


def _absolute(path: str | Path) -> Path:
    # Not resolved: links have names of their own.
    return Path(os.path.abspath(path))  # noqa: PTH100
