"""Where the categories of an anomalib data set lie, and the samples of each."""

import importlib
import inspect
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any

import pandas as pd
from anomalib.data import AnomalibDataModule, Folder, MVTecAD
from anomalib.data.datamodules import image as image_datamodules
from anomalib.data.errors import MisMatchError
from anomalib.data.utils import LabelName, Split

from anomalib_ccl.data import layouts
from anomalib_ccl.data.manta import manta_folder, read_manta
from anomalib_ccl.errors import InputError
from anomalib_ccl.names import nearest

logger = logging.getLogger(__name__)

# Arguments of anomalib's datamodules that would have no effect, or are set here.
_REFUSED = {"name", "root", "category", "train_batch_size", "eval_batch_size", "num_workers", "normal_split_ratio"}
_ARCHIVES = {".zip", ".tar", ".tgz", ".gz", ".xz"}  # what a download that was cut short leaves behind


def joinable_datamodules() -> dict[str, Any]:
    """Give the image datamodules that have categories, which share more than their base, by name."""
    classes = [cls for cls in vars(image_datamodules).values() if inspect.isclass(cls)]
    modules = [cls for cls in classes if issubclass(cls, AnomalibDataModule)]
    found = {cls.__name__: cls for cls in modules if "category" in inspect.signature(cls).parameters}
    return found | {"Folder": Folder, "MANTA": MVTecAD}  # as which MANTA, unknown to anomalib, is split


class CategorySource:
    """One data set: finds its categories on disk, and the samples of each.

    Its arguments are those of an entry of :class:`~anomalib_ccl.data.MultiCategory`; ``arguments`` are those of each
    category's datamodule, which knows what can be downloaded, the defaults and how to split.
    """

    def __init__(
        self,
        dataset: str,
        root: str | Path | None = None,
        categories: str | Iterable[str] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        datamodules = joinable_datamodules()
        if dataset not in datamodules:
            raise InputError(f"dataset '{dataset}' is unknown; {_choice(dataset, datamodules, 'there are')}")
        self.dataset = dataset
        self.categories = sorted({str(category) for category in layouts.listed(categories)})
        self._datamodule_class = datamodules[dataset]
        self._layout = layouts.LAYOUTS.get(dataset, layouts.Layout())
        self._arguments = dict(arguments or {})
        own = set(inspect.signature(self._datamodule_class).parameters) - _REFUSED
        accepted = {name for name in own if not name.endswith("augmentations")}
        if refused := sorted(set(self._arguments) - accepted):
            raise InputError(f"{dataset} does not take {', '.join(refused)}; it takes {', '.join(sorted(accepted))}")
        layouts.check_folders(self._arguments)
        if dataset == "Folder" and (root is None or not self._arguments.get("normal_dir")):
            msg = (
                "Folder needs the root that holds the folders of the categories, and in dataset_args the "
                "normal_dir inside each, for example root: ./products, dataset_args: {normal_dir: good}"
            )
            raise InputError(msg)
        if root is None and dataset == "MANTA":
            root = "./datasets/MANTA"
        if root is not None:
            self._arguments["root"] = Path(root).absolute()
        # An instance knows what was left to its defaults: root, resolution.
        self._prototype = self.build()
        self.root = Path(self._prototype.root).absolute()
        package = self._datamodule_class.__module__.replace("datamodules", "datasets")
        can_be_downloaded = dataset not in {"Folder", "MANTA"}
        self._default_root = Path(self._datamodule_class().root).absolute() if can_be_downloaded else None
        published: tuple[str, ...] = getattr(importlib.import_module(package), "CATEGORIES", ())
        self._published = published if can_be_downloaded else ()

    def missing(self) -> Sequence[str | None]:
        """Give the categories that anomalib is to download or to split, none where there are some already.

        It is to if it can and is plainly meant to, which it is if ``root`` is the default, or a folder with nothing in
        it but archives: a misspelt root starts no download, and is refused.
        """
        if found := self._find_in(self.root):
            self._check(found)
            return []
        is_raw_visa = self.dataset == "Visa" and (self.root / "split_csv").is_dir()
        if self.root.is_dir():
            is_meant = is_raw_visa or all(path.suffix in _ARCHIVES for path in self.root.iterdir())
        else:
            is_meant = self.root == self._default_root and not self._hint()
        if not (is_meant and self._default_root):
            raise self._nothing_found()
        published = [name for name in self._published if not is_raw_visa or (self.root / name).is_dir()]
        if published:
            self._check(published)
        return self.categories or published or [None]

    def prepare(self) -> None:
        """Have anomalib download what is :meth:`missing`, or split raw VisA."""
        if not (missing := self.missing()):
            return
        if self.dataset == "BTech":  # which anomalib moves to its place, and into a folder that is there already
            with suppress(OSError):
                self.root.rmdir()
        try:
            for category in missing:
                self.build(category).prepare_data()
        except (OSError, RuntimeError) as error:
            msg = f"{self.dataset} is not complete under {self.root} and cannot be downloaded: {error}"
            raise InputError(msg) from error

    def present(self) -> list[str]:
        """Give the categories to use, sorted."""
        found = self._find_in(self.root)
        if not found:
            raise self._nothing_found()
        self._check(found)
        if not self.categories and self.dataset != "Kaputt":
            for place in sorted({self._folder(name).parent for name in found}):
                for folder in sorted(path for path in place.glob("[!.]*/") if path.name not in found):
                    if images := layouts.images_in(folder):
                        marks = " or ".join(self._marks())
                        logger.warning("Left out %d images in %s, which has no folder %s", len(images), folder, marks)
        return self.categories or found

    def samples(self, category: str, *, check: bool = True) -> pd.DataFrame:
        """Find the samples of a category, a table of :class:`~anomalib_ccl.data.layouts.Sample`."""
        what = f"category '{category}' of {self.dataset} in {self._folder(category)}"
        way_out = "repair its folder, or name the other categories in `categories`"
        try:
            samples = self._read(category)
        except (OSError, RuntimeError, ValueError, KeyError, MisMatchError) as error:
            raise InputError(f"{what} cannot be set up: {error}; {way_out}") from error
        others = [] if self.dataset == "Kaputt" else layouts.images_in(self._folder(category), layouts.OTHER_SUFFIXES)
        if others:
            logger.warning("Left out %d files of kinds that are not read, such as %s", len(others), others[0])
        defective = (samples["split"] == Split.TRAIN.value) & (samples["label_index"] == LabelName.ABNORMAL)
        if defective.any():
            first = samples["image_path"][defective].iloc[0]
            logger.warning("Left out %d training images of %s that are not normal: %s", defective.sum(), what, first)
            samples = samples[~defective].reset_index(drop=True)
        if not (samples["split"] == Split.TRAIN.value).any():
            raise InputError(f"{what} has no training image; {way_out}")
        if check:
            layouts.check_files([*samples["image_path"], *filter(None, samples["mask_path"].explode())], what)
        return samples

    def build(self, category: str | None = None) -> Any:  # noqa: ANN401  # the datamodules share more than their base
        """Build anomalib's datamodule of a category."""
        arguments = {"num_workers": 0, **self._arguments}
        if self.dataset == "Folder":
            arguments.update(name=category or "", root=Path(arguments["root"]) / (category or ""))
        elif category is not None:
            arguments["category"] = category
        try:
            datamodule = self._datamodule_class(**arguments)
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.dataset} refuses its arguments: {error}") from error
        for name in ("test_split_ratio", "val_split_ratio"):
            if (ratio := arguments.get(name)) is not None:  # anomalib takes 0.5 for 0
                if not (isinstance(ratio, int | float) and 0 <= ratio < 1):
                    raise InputError(f"{name} {ratio} is not a part of the images; take 0 or more, and less than 1")
                setattr(datamodule, name, float(ratio))
        return datamodule

    def _read(self, category: str) -> pd.DataFrame:
        folder = self._folder(category)
        if self.dataset == "Folder":
            names = (*layouts.DIRS, "extensions")
            return layouts.read_folders(folder, **{key: self._arguments.get(key) for key in names})
        if self.dataset == "RealIAD":
            return layouts.read_real_iad(folder, self.root / str(self._prototype.json_path).format(category=category))
        if self.dataset in {"Kaputt", "MVTecAD2"}:
            return layouts.read_by_anomalib(self.build(category))
        return read_manta(folder) if self.dataset == "MANTA" else layouts.read_layout(folder, self._layout)

    def _folder(self, category: str) -> Path:
        if self.dataset == "MANTA":
            return manta_folder(self.root, category)
        return self.root if self.dataset == "Kaputt" else self.root / self._home / category

    @property
    def _home(self) -> str:
        """The folder of the categories in the root."""
        resolution = getattr(self._prototype, "resolution", "")
        return {"Visa": "visa_pytorch", "RealIAD": f"realiad_{resolution}", "MANTA": "*"}.get(self.dataset, "")

    def _find_in(self, root: Path) -> list[str]:
        if self.dataset == "Kaputt":
            # Its categories are values in a table, not folders.
            return sorted(self._published) if (root / "datasets" / "query-train.parquet").exists() else []
        for home in ("", self._home) if self.dataset == "MANTA" else (self._home,):  # its root, or that of a domain
            folders = [path for path in root.glob(str(Path(home, "[!.]*"))) if path.is_dir()]
            if found := [path.name for path in folders if any(any(path.glob(mark)) for mark in self._marks())]:
                return sorted(found)
        return []

    def _marks(self) -> list[str]:
        """What may lie in the folder of a category; the first is what should."""
        if self.dataset == "Folder":
            return [escape(str(d)) for key in layouts.DIRS[:2] for d in layouts.listed(self._arguments.get(key))]
        # anomalib's split makes folders for all twelve categories of VisA, even where the raw data hold fewer.
        special = {"RealIAD": ["*"], "MANTA": ["train"], "Visa": ["*/*/*"]}
        return special.get(self.dataset, list(self._layout.splits))

    def _check(self, available: Iterable[str]) -> None:
        for category in self.categories:
            if category not in available:
                msg = f"category '{category}' not found under {self.root}; {_choice(category, available, 'found')}"
                raise InputError(msg)

    def _nothing_found(self) -> InputError:
        download = "; make it, empty, to have it downloaded if anomalib can" if self._default_root else ""
        manta = "; get MANTA from https://grainnet.github.io/MANTA" if self.dataset == "MANTA" else ""
        if not self.root.is_dir():
            return InputError(f"there is no folder {self.root}: check root{self._hint()}{download}{manta}")
        layout = self.root / self._home.replace("*", "<domain>") / "<category>" / self._marks()[0].rstrip("*/")
        where = f"there is no folder {layout}; check root and dataset{manta}"
        return InputError(f"no category of {self.dataset} found: {where}")

    def _hint(self) -> str:
        """The root with its first part that is not there replaced by the most similar one, if that holds categories."""
        there = next(parent for parent in self.root.parents if parent.is_dir())
        missing, *rest = self.root.relative_to(there).parts
        near = there / (nearest(missing, [path.name for path in there.iterdir()]) or missing) / Path(*rest)
        return f"; did you mean {near}?" if self._find_in(near) else ""


def category_names(sources: Sequence[CategorySource]) -> list[dict[str, str]]:
    """Name the categories of several data sets, each by a name of its own.

    Where the data sets are of different kinds, their categories get the kind in front: ``MVTecAD/bottle``. Those of one
    kind keep their names; only a name that is in several of them gets the name of its folder in front.
    """
    present = [source.present() for source in sources]
    several_kinds = len({source.dataset for source in sources}) > 1
    times = Counter((source.dataset, name) for source, names in zip(sources, present, strict=True) for name in names)
    named: list[dict[str, str]] = []
    for source, categories in zip(sources, present, strict=True):
        kind = source.dataset if several_kinds else ""
        roots = [other.root.parent for other in sources if other.dataset == source.dataset]
        folder = source.root.relative_to(os.path.commonpath(roots))
        named.append({})
        for category in categories:
            name = Path(kind, folder if times[source.dataset, category] > 1 else "", category).as_posix()
            if any(name in of_source.values() for of_source in named):
                msg = f"category '{source.dataset}/{category}' is in two entries of datasets; leave it out of one"
                raise InputError(msg)
            named[-1][category] = name
    return named


def _choice(name: str, known: Iterable[str], there_are: str) -> str:
    near = nearest(name, known)
    start = f"did you mean {near}? {there_are.capitalize()}" if near else there_are
    return f"{start} {', '.join(sorted(known))}"
