"""Where the categories of an anomalib data set lie, and the samples of each."""

from __future__ import annotations

import importlib
import inspect
import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib.data.utils import LabelName, Split

from anomalib_ccl.data.files import check_files
from anomalib_ccl.data.joinable import joinable_datamodules
from anomalib_ccl.data.layouts import (
    LAYOUTS,
    Layout,
    read_by_anomalib,
    read_folders,
    read_layout,
    read_raw_visa,
    read_real_iad,
)
from anomalib_ccl.data.manta import manta_folder, read_manta
from anomalib_ccl.data.misspelt import alike, nearest_first, nearest_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pandas as pd

logger = logging.getLogger(__name__)

_ARCHIVES = {".zip", ".tar", ".tgz", ".gz", ".xz"}  # what a download that was cut short leaves behind


class CategorySource:
    """One data set: finds its categories on disk, and the samples of each.

    anomalib's datamodule of the data set knows what can be downloaded, the defaults and how to split. The folders are
    read by :mod:`anomalib_ccl.data.layouts`.

    Args:
        dataset: Class name of an anomalib image datamodule that has categories, or of ours, ``"MANTA"``; or
            ``"Folder"``, for which each sub-folder of ``root`` with ``normal_dir`` in it is a category.
        root: Folder of the data set. ``None`` takes the datamodule's own default.
        categories: Categories to use. ``None`` uses all that are found under ``root``.
        arguments: Further arguments of the datamodule, the same for each category.

    Attributes:
        root: The folder of the data set, absolute; links in it are kept.

    Raises:
        ValueError: If ``dataset`` is not the name of such a datamodule, if it does not take one of the
            arguments, or if ``Folder`` is not told its ``root`` and ``normal_dir``.

    Example:
        >>> CategorySource("MVTecADD")
        Traceback (most recent call last):
        ...
        ValueError: dataset 'MVTecADD' is unknown; choose one of AutoVI, BMAD, BTech, ...
    """

    def __init__(
        self,
        dataset: str,
        root: str | Path | None = None,
        categories: Iterable[str] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        datamodules = joinable_datamodules()
        if dataset not in datamodules:
            msg = f"dataset '{dataset}' is unknown; choose one of {', '.join(sorted(datamodules))}"
            raise ValueError(msg)
        self.dataset = dataset
        self.categories = sorted({str(category) for category in categories or ()})
        self._datamodule_class: Any = datamodules[dataset]
        self._arguments = {} if arguments is None else dict(arguments)
        accepted = set(inspect.signature(self._datamodule_class).parameters) - {"name", "root", "category"}
        refused = sorted(set(self._arguments) - accepted)
        if refused:
            msg = f"{dataset} does not take {', '.join(refused)}; it takes {', '.join(sorted(accepted))}"
            raise ValueError(msg)
        if dataset == "Folder" and (root is None or "normal_dir" not in self._arguments):
            msg = (
                "Folder needs the root that holds the folders of the categories, and in dataset_args the "
                "normal_dir inside each, for example root: ./products, dataset_args: {normal_dir: good}"
            )
            raise ValueError(msg)
        self._default_root = None if dataset == "Folder" else Path(datamodules[dataset]().root).absolute()  # type: ignore[attr-defined, call-arg]
        if root is not None:
            self._arguments["root"] = Path(root).absolute()
        # An instance knows what was left to its defaults: root, resolution.
        self._prototype = self.build()
        self.root = Path(self._prototype.root).absolute()
        package = self._datamodule_class.__module__.replace("datamodules", "datasets")
        self._published: tuple[str, ...] = getattr(importlib.import_module(package), "CATEGORIES", ())
        self._layout = LAYOUTS.get(dataset, Layout())
        if dataset == "MVTecAD2":
            test = f"test_{self._prototype.test_type.value}"
            splits = {**self._layout.splits, test: Split.TEST}
            self._layout = self._layout._replace(splits=splits, masks=(test, "ground_truth", "*"))

    def find(self) -> list[str]:
        """Categories on disk, sorted; empty where there are none."""
        return self._find_in(self.root)

    def prepare(self) -> None:
        """Have anomalib download what is not there, if it can and is plainly meant to.

        It is meant to if ``root`` is not given, or is a folder with nothing in it but archives; or if it is not there
        but is called as anomalib calls the folder of the data set, inside a folder that is there. A misspelt root
        starts no download.

        Raises:
            FileNotFoundError: If nothing is on disk and nothing is to be downloaded, or the download failed; or if
                ``root`` holds folders but none of this data set.
            ValueError: If a category is neither on disk nor, where there is none at all, published.
        """
        found = self.find()
        if found:
            self._check(found)
            return
        if self.root.is_dir():
            if self.dataset == "Folder" or not all(path.suffix in _ARCHIVES for path in self.root.iterdir()):
                raise self._nothing_found()
        elif not self._root_is_to_be_made():
            raise self._no_root()
        if self._published:
            self._check(self._published)
        if self.dataset == "BTech":  # which anomalib moves to its place, and into a folder that is there already
            with suppress(OSError):
                self.root.rmdir()
        for category in self.categories or self._published or (None,):
            self._prepare(category)

    def present(self) -> list[str]:
        """Categories to use, sorted.

        Raises:
            FileNotFoundError: If no category is found under ``root``.
            ValueError: If a category that was asked for is not among them.
        """
        found = self.find()
        if not found:
            raise self._nothing_found() if self.root.is_dir() else self._no_root()
        self._check(found)
        return self.categories or found

    def samples(self, category: str, *, check: bool = True) -> pd.DataFrame:
        """Find the samples of a category.

        Args:
            category: One of those that are present.
            check: Whether all files must be there.

        Returns:
            A table of :class:`~anomalib_ccl.data.layouts.Sample`.

        Raises:
            ValueError: If the category has no training image, if its masks and images do not find each other, or if a
                file is not there.
        """
        what = f"category '{category}' of {self.dataset} in {self._folder(category)}"
        way_out = "repair its folder, or name the other categories in `categories`"
        try:
            samples = self._read(category)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            msg = f"{what} cannot be set up: {error}; {way_out}"
            raise ValueError(msg) from error
        in_training = samples["split"] == Split.TRAIN.value
        defective = in_training & (samples["label_index"] == LabelName.ABNORMAL)
        if defective.any():
            logger.warning(
                "Left out %d training images of %s that are not normal, such as %s",
                defective.sum(),
                what,
                samples["image_path"][defective].iloc[0],
            )
            samples = samples[~defective].reset_index(drop=True)
        if not (samples["split"] == Split.TRAIN.value).any():
            msg = f"{what} has no training image; {way_out}"
            raise ValueError(msg)
        if check:
            masks = [path for paths in samples["mask_path"] for path in ([paths] if isinstance(paths, str) else paths)]
            check_files([*samples["image_path"], *filter(None, masks)], what)
        return samples

    def build(self, category: str | None = None) -> Any:  # noqa: ANN401
        """Build anomalib's datamodule of a category.

        Args:
            category: The category, or ``None`` for the default one of the data set.

        Returns:
            The datamodule, not set up.
        """
        arguments = {"num_workers": 0, **self._arguments}
        if self.dataset == "Folder":
            arguments.update(name=category or "", root=Path(arguments["root"]) / (category or ""))
        elif category is not None:
            arguments["category"] = category
        return self._datamodule_class(**arguments)

    def _read(self, category: str) -> pd.DataFrame:
        folder = self._folder(category)
        if self.dataset == "Folder":
            names = ("normal_dir", "abnormal_dir", "normal_test_dir", "mask_dir", "extensions")
            return read_folders(folder, **{key: self._arguments[key] for key in names if key in self._arguments})
        if self.dataset == "RealIAD":
            table = self.root / str(self._prototype.json_path).format(category=category)
            return read_real_iad(folder, table)
        if self.dataset == "Kaputt":
            return read_by_anomalib(self.build(category))
        if self.dataset == "MANTA":
            return read_manta(folder)
        if self.dataset == "Visa" and folder.parent == self.root:
            return read_raw_visa(self.root, category)
        return read_layout(folder, self._layout)

    def _folder(self, category: str) -> Path:
        if self.dataset == "Visa":
            # anomalib's split makes folders for all twelve categories, even where the raw data hold fewer.
            split = self.root / "visa_pytorch" / category
            return split if any(split.glob("train/good/*")) else self.root / category
        if self.dataset == "RealIAD":
            return self.root / f"realiad_{self._prototype.resolution}" / category
        if self.dataset == "MANTA":
            return manta_folder(self.root, category)
        return self.root if self.dataset == "Kaputt" else self.root / category

    def _find_in(self, root: Path) -> list[str]:
        if self.dataset == "Kaputt":
            # Its categories are values in a table, not folders.
            return sorted(self._published) if (root / "datasets" / "query-train.parquet").exists() else []
        for head, tails in self._places():
            folders = (path for path in root.glob(str(Path(head, "*"))) if not path.name.startswith("."))
            found = [path.name for path in folders if any((path / tail).is_dir() for tail in tails)]
            if found:
                return sorted(found)
        return []

    def _places(self) -> list[tuple[str, list[str]]]:
        """Folders ``root/<head>/<category>/<tail>``, any of which makes a category; the first head that has any.

        A head may be a pattern.
        """
        if self.dataset == "Visa":
            return [("", ["Data"]), ("visa_pytorch", ["train", "test"])]
        if self.dataset == "RealIAD":
            return [(f"realiad_{self._prototype.resolution}", [""])]
        if self.dataset == "MANTA":
            return [("", ["train"]), ("*", ["train"])]
        if self.dataset == "Folder":
            dirs = (self._arguments.get(key) or [] for key in ("normal_dir", "abnormal_dir"))
            return [("", [str(name) for d in dirs for name in ([d] if isinstance(d, str | Path) else d)])]
        return [("", list(self._layout.splits))]

    def _root_is_to_be_made(self) -> bool:
        default, parent = self._default_root, self.root.parent
        if default is None or not (self.root == default or (self.root.name == default.name and parent.is_dir())):
            return False
        # Not where the data lie beside it under a name that differs in case or underscores.
        return not any(alike(path.name, self.root.name) and self._find_in(path) for path in parent.glob("*"))

    def _prepare(self, category: str | None) -> None:
        try:
            self.build(category).prepare_data()
        except (OSError, RuntimeError) as error:
            msg = f"{self.dataset} is not complete under {self.root} and cannot be downloaded: {error}"
            raise FileNotFoundError(msg) from error

    def _check(self, available: Iterable[str]) -> None:
        for category in self.categories:
            if category not in available:
                names = ", ".join(nearest_first(category, available))
                msg = f"category '{category}' not found under {self.root}; found {names}"
                raise ValueError(msg)

    def _nothing_found(self) -> FileNotFoundError:
        head, tails = self._places()[-1]
        layout = self.root / head / "<category>" / tails[0]
        msg = f"no category of {self.dataset} found: there is no folder {layout}; check root and dataset"
        return FileNotFoundError(msg)

    def _no_root(self) -> FileNotFoundError:
        near = nearest_folder(self.root)
        hints = [f"did you mean {near}?"] if near else []
        if self.dataset != "Folder":
            hints.append(f"make it, empty, to have {self.dataset} downloaded into it where anomalib can")
        msg = "; ".join([f"there is no folder {self.root}: check root", *hints])
        return FileNotFoundError(msg)
