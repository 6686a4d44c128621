"""Where the categories of an anomalib data set lie, and the datamodule of each."""

from __future__ import annotations

import importlib
import inspect
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from anomalib.data import AnomalibDataModule
from anomalib.data.datamodules import image as image_datamodules

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping


def joinable_datamodules() -> dict[str, type[AnomalibDataModule]]:
    """The image datamodules of anomalib that have categories, and ``Folder``, by class name.

    Example:
        >>> "MVTecAD" in joinable_datamodules(), "Kolektor" in joinable_datamodules()
        (True, False)
    """
    return {
        name: cls
        for name, cls in vars(image_datamodules).items()
        if inspect.isclass(cls)
        and issubclass(cls, AnomalibDataModule)
        and (name == "Folder" or "category" in inspect.signature(cls).parameters)
    }


class CategorySource:
    """One data set: finds its categories on disk and builds the datamodule of each.

    Args:
        dataset: Class name of an anomalib image datamodule that has categories, or ``"Folder"``, for which
            each sub-folder of ``root`` with ``normal_dir`` in it is a category.
        root: Folder of the data set. ``None`` takes the datamodule's own default.
        categories: Categories to use. ``None`` uses all that are found under ``root``.
        arguments: Further arguments of the datamodule, the same for each category.

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
        if root is not None:
            self._arguments["root"] = root
        # An instance knows what was left to its defaults: root, resolution.
        self._prototype = self._build()
        self.root = Path(self._prototype.root)
        package = self._datamodule_class.__module__.replace("datamodules", "datasets")
        self._published: tuple[str, ...] = getattr(importlib.import_module(package), "CATEGORIES", ())

    def find(self) -> list[str]:
        """Categories on disk, sorted; empty where there are none."""
        if self.dataset == "Kaputt":
            # Its categories are values in a table, not folders.
            table = self.root / "datasets" / "query-train.parquet"
            return sorted(self._published) if table.exists() else []
        for head, tail in self._layouts():
            found = [path.name for path in (self.root / head).glob("*") if (path / tail).is_dir()]
            if found:
                return sorted(found)
        return []

    def prepare(self) -> None:
        """Let the categories' datamodules prepare their data, which downloads what anomalib can download.

        Raises:
            FileNotFoundError: If nothing is on disk and the download failed, or if ``root`` holds folders but
                none of this data set: it is then most likely the wrong root.
            ValueError: If a category is neither on disk nor one of those that the data set has.
        """
        found = self.find()
        if not found and self.root.is_dir() and any(path.is_dir() for path in self.root.iterdir()):
            raise self._nothing_found()
        known = sorted({*found, *self._published})
        if known:
            self._check(known)
        names: Iterable[str | None] = self.categories or found or self._published or [None]
        for category in names:
            self._prepare(category)

    def present(self) -> list[str]:
        """Categories to use, sorted.

        Raises:
            FileNotFoundError: If no category is found under ``root``.
            ValueError: If a category that was asked for is not among them.
        """
        found = self.find()
        if not found:
            raise self._nothing_found()
        self._check(found)
        return self.categories or found

    def set_up(self, category: str) -> AnomalibDataModule:
        """The category's own datamodule, with its splits made.

        Raises:
            ValueError: If the category has no training image or cannot be set up.
        """
        folders = [self.root / head / category for head, _ in self._layouts()]
        folder = next((folder for folder in folders if folder.is_dir()), self.root)
        what = f"category '{category}' of {self.dataset} in {folder}"
        way_out = "repair its folder, or name the other categories in `categories`"
        try:
            datamodule = self._build(category)
            with _strings_as_objects():
                datamodule.setup()
        except Exception as error:
            msg = f"{what} cannot be set up: {error}; {way_out}"
            raise ValueError(msg) from error
        if len(datamodule.train_data) == 0:
            msg = f"{what} has no training image; {way_out}"
            raise ValueError(msg)
        return datamodule

    def _prepare(self, category: str | None) -> None:
        try:
            self._build(category).prepare_data()
        except OSError as error:
            msg = f"{self.dataset} is not complete under {self.root} and cannot be downloaded: {error}"
            raise FileNotFoundError(msg) from error

    def _build(self, category: str | None = None) -> Any:  # noqa: ANN401
        """A datamodule of the category, or of the data set's default category."""
        arguments = {"num_workers": 0, **self._arguments}
        if self.dataset == "Folder":
            arguments.update(name=category or "", root=Path(arguments["root"]) / (category or ""))
        elif category is not None:
            arguments["category"] = category
        return self._datamodule_class(**arguments)

    def _layouts(self) -> list[tuple[str, str]]:
        """Pairs ``(head, tail)`` of folders ``root/head/<category>/tail``; the first that is there counts."""
        if self.dataset == "Visa":
            # anomalib's split makes folders for all twelve categories, even where the raw data hold fewer.
            return [("", "Data"), ("visa_pytorch", "train")]
        if self.dataset == "RealIAD":
            return [(f"realiad_{self._prototype.resolution}", "")]
        if self.dataset == "Folder":
            normal_dir = self._arguments["normal_dir"]
            return [("", str(normal_dir if isinstance(normal_dir, str | Path) else normal_dir[0]))]
        return [("", "train")]

    def _check(self, available: Collection[str]) -> None:
        for category in self.categories:
            if category not in available:
                msg = f"category '{category}' not found under {self.root}; found {', '.join(available)}"
                raise ValueError(msg)

    def _nothing_found(self) -> FileNotFoundError:
        head, tail = self._layouts()[-1]
        layout = self.root / head / "<category>" / tail
        msg = f"no category of {self.dataset} found: there is no folder {layout}; check root and dataset"
        return FileNotFoundError(msg)


@contextmanager
def _strings_as_objects() -> Iterator[None]:
    """Undo the string type of pandas 3, with which MVTecAD2, MVTecLOCO and AutoVI of anomalib 2.7 fail."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*future.infer_string")
        with pd.option_context("future.infer_string", False):
            yield
