"""Several categories, or several data sets, in one anomalib datamodule."""

import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import TestSplitMode, ValSplitMode
from lightning.pytorch.utilities.types import EVAL_DATALOADERS
from omegaconf import OmegaConf
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Transform

from anomalib_ccl.data.dataset import MultiCategoryDataset, leave_out_unreadable, warn_about_test_sets
from anomalib_ccl.data.layouts import listed
from anomalib_ccl.data.reading import PixelRanges, find_ranges
from anomalib_ccl.data.sampler import CategorySampler, one_kind_a_batch
from anomalib_ccl.data.source import CategorySource, category_names
from anomalib_ccl.data.splits import check_roles, split_samples, tasks
from anomalib_ccl.errors import InputError

logger = logging.getLogger(__name__)


class MultiCategory(AnomalibDataModule):
    """The categories of an anomalib data set, or of several data sets, as one datamodule.

    Each category is prepared and split by its own anomalib datamodule; this one joins them. It works with every
    anomalib model. After ``setup``, the frames ``train_data.samples``, ``val_data.samples`` and ``test_data.samples``
    have a column ``category``, and ``category_names`` lists the categories. Training batches hold at least two
    categories, where the data allow (:class:`~anomalib_ccl.data.CategorySampler`).

    Black and white of high-bit-depth images are those of the training images. A checkpoint keeps them, and a model that
    is tested or validated from it reads its images with them. It also keeps how the folders are laid out and split.

    All arguments but the augmentations are plain YAML values.

    Args:
        dataset: Class name of an anomalib image datamodule that has categories (``MVTecAD``, ``MVTecAD2``,
            ``MVTecLOCO``, ``Visa``, ``BTech``, ``MPDD``, ``VAD``, ``RealIAD``, ``AutoVI``, ``BMAD``,
            ``Kaputt``), ``MANTA``, or ``Folder`` with one sub-folder of ``root`` for each category.
        root: Folder that holds the categories. ``None`` takes the default of the joined datamodule.
        categories: Categories to use. ``None`` uses all that are found under ``root``; where ``root`` is empty, all
            that anomalib can download.
        datasets: Several data sets instead of one. Each entry is a class name or a mapping with the keys
            ``dataset``, ``root``, ``categories`` and ``dataset_args``. Where they are of different kinds, the names
            of the categories get the kind in front: ``MVTecAD/bottle``. Among those of one kind, only a name that is
            in several gets the name of its folder in front: ``line1/bottle`` and ``line2/bottle``.
        dataset_args: Further arguments for the datamodule of each category, such as ``normal_dir`` for
            ``Folder`` or ``resolution`` for ``RealIAD``.
        skip_corrupt: Whether images that cannot be read are skipped, with a warning for each, instead of stopping the
            run with their path. Every image is then read once before each run.
        max_epochs: Upper limit of the number of training epochs, whatever the trainer says; ``None`` and -1
            set no limit. For ``anomalib benchmark``, which gives its trainer no number of epochs.
        train_batch_size: Training images in a batch.
        eval_batch_size: Validation or test images in a batch.
        num_workers: Processes that read images, for each data loader. Half of anomalib's default: each takes several
            hundred MB where processes are spawned.
        train_augmentations: Transform of the training images.
        val_augmentations: Transform of the validation images.
        test_augmentations: Transform of the test images.
        augmentations: Transform for the subsets that have none of their own.
        test_split_mode: How each category gets its test images. ``None`` takes the default of the joined
            datamodule; so do the other arguments about splits.
        test_split_ratio: Part of the training images used for testing where there are no normal test images; 0 or
            more, less than 1.
        val_split_mode: How each category gets its validation images.
        val_split_ratio: Part of the images used for validation; 0 or more, less than 1.
        seed: Seed of the splits and of the order of the training images. ``None`` splits with the global
            generator and orders by the seed that Lightning was given.

    Raises:
        InputError: If a data set is unknown or does not take an argument, or if ``root`` holds no category, or not one
            that is named, and is not to be downloaded into. From ``prepare_data`` and ``setup``, if a category is empty
            or broken. From batches, if an image is unreadable.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from anomalib_ccl.data import MultiCategory, make_sample_dataset
        >>> folder = TemporaryDirectory()
        >>> root = make_sample_dataset(f"{folder.name}/sample", size=32, train=4, test_good=1, per_defect=1)
        >>> datamodule = MultiCategory(
        ...     "MVTecAD", root, categories=["brick", "tissue"], train_batch_size=4, num_workers=0
        ... )
        >>> datamodule.setup()
        >>> datamodule.category_names
        ['brick', 'tissue']
        >>> batch = next(iter(datamodule.train_dataloader()))
        >>> batch.image.shape
        torch.Size([4, 3, 32, 32])
        >>> folder.cleanup()
    """

    train_data: MultiCategoryDataset
    val_data: MultiCategoryDataset
    test_data: MultiCategoryDataset

    def __init__(
        self,
        dataset: str = "MVTecAD",
        root: str | Path | None = None,
        categories: list[str] | None = None,
        datasets: list[str | dict[str, Any]] | None = None,
        *,
        dataset_args: dict[str, Any] | None = None,
        skip_corrupt: bool = False,
        max_epochs: int | None = None,
        train_batch_size: int = 16,
        eval_batch_size: int = 16,
        num_workers: int = 4,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        test_split_mode: TestSplitMode | str | None = None,
        test_split_ratio: float | None = None,
        val_split_mode: ValSplitMode | str | None = None,
        val_split_ratio: float | None = None,
        seed: int | None = None,
    ) -> None:
        augment = (train_augmentations, val_augmentations, test_augmentations, augmentations)
        # Without the splits, which are those of each category's own datamodule.
        super().__init__(train_batch_size, eval_batch_size, num_workers, *augment, seed=seed)
        for name, least in {"train_batch_size": 1, "eval_batch_size": 1, "num_workers": 0, "seed": 0}.items():
            value = getattr(self, name)
            if not (isinstance(value, int | np.integer) and value >= least) and (name, value) != ("seed", None):
                raise InputError(f"{name} {value!r} is no whole number from {least} on")
        self.skip_corrupt = skip_corrupt
        self.max_epochs = max_epochs
        self.category_names: list[str] = []
        self._ranges = self._own_ranges = PixelRanges()
        modes = {"test_split_mode": test_split_mode, "val_split_mode": val_split_mode}
        ratios = {"test_split_ratio": test_split_ratio, "val_split_ratio": val_split_ratio}
        shared = {name: value for name, value in {**modes, **ratios, "seed": seed}.items() if value is not None}
        if datasets is None:
            one = {"dataset": dataset, "root": root, "categories": categories, "dataset_args": dataset_args}
            entries: list[Any] = [one]
        elif datasets and root is None and categories is None and dataset_args is None:
            entries = [{"dataset": entry} if isinstance(entry, str) else entry for entry in listed(datasets)]
        else:
            raise InputError("datasets names one or more, with root, categories and dataset_args in its entries")
        entries = [_plain(entry) for entry in entries]
        self._sources = [_source(entry, shared) for entry in entries]
        for source in self._sources:  # now, and not only when a run has made its folder
            source.missing()
        layouts = [{key: _plain(entry.get(key)) for key in ("dataset", "dataset_args")} for entry in entries]
        common = layouts[0] if all(layout == layouts[0] for layout in layouts) else {}
        # Checkpoints keep them, as plain data, for commands on further folders that are laid out alike.
        self.save_hyperparameters(json.loads(json.dumps({**common, **shared}, default=str)), logger=False)

    @property
    def ranges(self) -> PixelRanges:
        """Black and white of the images: those of the training images, or of the training of the model that reads."""
        return self._ranges

    @ranges.setter
    def ranges(self, ranges: PixelRanges) -> None:
        self._ranges = ranges
        for subset in self._subsets():
            subset.ranges = ranges

    def prepare_data(self) -> None:
        """Let the datamodules of all categories prepare their data, which may download them."""
        for source in self._sources:
            source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Set up all categories, whatever the stage; apply ``max_epochs``; have each epoch saved without validation."""
        super().setup(stage)
        if stage == "fit":  # not those of a checkpoint that this datamodule was tested with before
            self.ranges = self._own_ranges
        seed = self.seed if self.seed is not None else int(os.environ.get("PL_GLOBAL_SEED", "0"))
        self._order = {"seed": seed, "epoch": 0}
        if stage == "fit" and self.trainer is not None:
            limits = [n for n in (self.trainer.fit_loop.max_epochs, self.max_epochs) if n not in (None, -1)]
            if limits:
                self.trainer.fit_loop.max_epochs = min(limits)
            if not hasattr(self, "val_data") and self.trainer.check_val_every_n_epoch is not None:
                # Lightning writes a checkpoint at the end of an epoch only if each could have had a validation.
                self.trainer.check_val_every_n_epoch = 1

    def state_dict(self) -> dict[str, Any]:
        """Give what a checkpoint keeps: the pixel ranges of the training, and seed and next epoch of its order."""
        epoch = self.trainer.fit_loop.epoch_progress.current.processed  # type: ignore[union-attr]
        return {**self._order, "epoch": epoch, "ranges": asdict(self.ranges)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take from a checkpoint what :meth:`state_dict` gave."""
        self._order = {key: state_dict[key] for key in ("seed", "epoch")}
        self.ranges = PixelRanges(**state_dict["ranges"])

    def train_dataloader(self) -> DataLoader:
        """The training images, in batches of several categories."""
        categories = self.train_data.samples["category"].tolist()
        sampler = CategorySampler(categories, self.train_batch_size, seed=self._order["seed"])
        # Lightning sets it too, but, when it resumes a training, after the workers were told their first images.
        sampler.set_epoch(self._order["epoch"])
        return DataLoader(
            dataset=self.train_data,
            sampler=sampler,
            batch_size=self.train_batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=self.external_collate_fn or self.train_data.collate_fn,
        )

    def val_dataloader(self) -> EVAL_DATALOADERS:
        """The validation images; empty where no category has any (``val_split_mode="none"``)."""
        return one_kind_a_batch(super().val_dataloader(), self.val_data) if hasattr(self, "val_data") else []

    def test_dataloader(self) -> EVAL_DATALOADERS:
        """The test images."""
        return one_kind_a_batch(super().test_dataloader(), self.test_data)

    def _setup(self, _stage: str | None = None) -> None:
        samples: dict[str, pd.DataFrame] = {}
        datamodule_of: dict[str, AnomalibDataModule] = {}
        for source, names in zip(self._sources, category_names(self._sources), strict=True):
            for category, name in names.items():
                samples[name] = source.samples(category, check=not self.skip_corrupt)
                datamodule_of[name] = source.build(category)
        check_roles(samples)
        task = tasks(samples)
        split = {name: split_samples(datamodule_of[name], table, task[name]) for name, table in samples.items()}
        for subset in ("train", "test", "val"):
            if parts := {name: of_category[subset] for name, of_category in split.items() if subset in of_category}:
                setattr(self, f"{subset}_data", MultiCategoryDataset(parts, name_empty_masks=subset == "test"))
        self.category_names = sorted(samples)
        self._own_ranges, count = find_ranges(self.train_data.samples["image_path"])
        self.ranges = self._own_ranges
        if count:
            logger.info("%d training images have more than 8 bits; black and white are %s", count, self.ranges)
        if self.skip_corrupt:
            leave_out_unreadable(*self._subsets())
            if lost := sorted(set(samples) - set(self.train_data.samples["category"])):
                msg = f"cannot read any training image of {', '.join(lost)}; name the other categories in `categories`"
                raise InputError(msg)
        warn_about_test_sets(self.test_data, self.category_names)

    def _subsets(self) -> list[MultiCategoryDataset]:
        """Those that there are."""
        return [getattr(self, name) for name in ("train_data", "test_data", "val_data") if hasattr(self, name)]

    def _create_test_split(self) -> None:
        """Nothing to do: the datamodule of each category has split its images."""

    _create_val_split = _create_test_split


class MANTA(MultiCategory):
    """The views of one category of MANTA; :class:`MultiCategory` joins all of them: ``dataset: MANTA``.

    Args:
        root: Folder of the data set, or of one of its domains.
        category: The category.
        **arguments: The other arguments of :class:`MultiCategory`.

    Raises:
        InputError: As :class:`MultiCategory` does; also, from ``setup``, if defects are to be synthetic, which anomalib
            makes in files that hold one image.
    """

    def __init__(self, root: str | Path | None = None, category: str = "maize", **arguments: Any) -> None:  # noqa: ANN401
        super().__init__("MANTA", root, [category], **arguments)
        self.category = category


def _plain(value: Any) -> Any:  # noqa: ANN401
    """The plain lists and dicts in a configuration of OmegaConf, which anomalib's pipelines pass on."""
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _source(entry: dict[str, Any], shared: dict[str, Any]) -> CategorySource:
    keys = ("dataset", "root", "categories", "dataset_args")
    if not isinstance(entry, dict) or "dataset" not in entry or not set(entry) <= set(keys):
        raise InputError(f"an entry of datasets has the keys {', '.join(keys)}, the first of them always; got {entry}")
    own = _plain(entry.get("dataset_args") or {})
    if not isinstance(own, dict):
        raise InputError(f"dataset_args are names with values, such as {{normal_dir: good}}; got {own}")
    return CategorySource(entry["dataset"], entry.get("root"), entry.get("categories"), {**shared, **own})


def share_ranges(datamodule: object, ranges: PixelRanges | None) -> None:
    """Have a datamodule that is set up read its images with the black and white of a model's training images."""
    if ranges is not None and isinstance(datamodule, MultiCategory):
        datamodule.ranges = ranges
