"""Several categories, or several data sets, in one anomalib datamodule."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pandas as pd
from anomalib import TaskType
from anomalib.data import AnomalibDataModule, AnomalibDataset
from anomalib.data.utils import LabelName, TestSplitMode, ValSplitMode
from lightning.pytorch.utilities.types import EVAL_DATALOADERS
from omegaconf import OmegaConf
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Transform

from anomalib_ccl.data.dataset import MultiCategoryDataset
from anomalib_ccl.data.naming import Entry, category_names
from anomalib_ccl.data.ranges import PixelRanges
from anomalib_ccl.data.reading import find_ranges
from anomalib_ccl.data.sampler import CategorySampler, one_kind_a_batch
from anomalib_ccl.data.source import CategorySource
from anomalib_ccl.data.splits import split_samples, tasks
from anomalib_ccl.data.unreadable import leave_out_unreadable

logger = logging.getLogger(__name__)


class MultiCategory(AnomalibDataModule):
    """The categories of an anomalib data set, or of several data sets, as one datamodule.

    Each category is prepared, split and read by its own anomalib datamodule; this one joins them. It works
    with every anomalib model. After ``setup``, the frames ``train_data.samples``, ``val_data.samples`` and
    ``test_data.samples`` have a column ``category``, and ``category_names`` lists the categories. Training
    batches hold at least two categories, and two images of one, where the data allow
    (:class:`~anomalib_ccl.data.CategorySampler`).

    All arguments but the augmentations are plain YAML values.

    Args:
        dataset: Class name of an anomalib image datamodule that has categories (``MVTecAD``, ``MVTecAD2``,
            ``MVTecLOCO``, ``Visa``, ``BTech``, ``MPDD``, ``VAD``, ``RealIAD``, ``AutoVI``, ``BMAD``,
            ``Kaputt``), ``MANTA``, or ``Folder`` with one sub-folder of ``root`` for each category.
        root: Folder that holds the categories. ``None`` takes the default of the joined datamodule.
        categories: Categories to use. ``None`` uses all that are found under ``root``; where ``root`` holds
            nothing yet, all that anomalib can download.
        datasets: Several data sets instead of one. Each entry is a class name or a mapping with the keys
            ``dataset``, ``root``, ``categories`` and ``dataset_args``. Where they are of different kinds, the names
            of the categories get the kind in front: ``MVTecAD/bottle``. Among those of one kind, only a name that is
            in several gets the name of its folder in front: ``line1/bottle`` and ``line2/bottle``.
        dataset_args: Further arguments for the datamodule of each category, such as ``normal_dir`` for
            ``Folder`` or ``resolution`` for ``RealIAD``.
        skip_corrupt: Whether images that cannot be read are skipped, with a warning for each, instead of stopping the
            run with their path. Every image is then read once before each run, which takes about as long as reading
            them for an epoch.
        max_epochs: Upper limit of the number of training epochs, whatever the trainer says; ``None`` and -1
            set no limit. For ``anomalib benchmark``, whose trainer cannot be told how long to train.
        train_batch_size: Training images in a batch; 3 or more lets a batch hold two categories and two
            images of one.
        eval_batch_size: Validation or test images in a batch.
        num_workers: Processes that read images, for each data loader. Half of anomalib's default: laptops
            have 4 to 8 cores, and each worker takes several hundred MB where processes are spawned.
        train_augmentations: Transform of the training images.
        val_augmentations: Transform of the validation images.
        test_augmentations: Transform of the test images.
        augmentations: Transform for the subsets that have none of their own.
        test_split_mode: How each category gets its test images. ``None`` takes the default of the joined
            datamodule; so do the other arguments about splits.
        test_split_ratio: Part of the training images used for testing, between 0 and 1.
        val_split_mode: How each category gets its validation images.
        val_split_ratio: Part of the images used for validation, between 0 and 1.
        seed: Seed of the splits and of the order of the training images. ``None`` splits with the global
            generator and orders by the seed that Lightning was given.

    Raises:
        ValueError: If a data set is unknown or does not take an argument it is given. Later, from
            ``prepare_data`` or ``setup``, if a category is unknown, empty or broken.
        FileNotFoundError: From ``prepare_data`` or ``setup``, if ``root`` holds no category.

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
        >>> datamodule.train_data.samples["category"].value_counts().to_dict()
        {'brick': 4, 'tissue': 4}
        >>> batch = next(iter(datamodule.train_dataloader()))
        >>> batch.image.shape
        torch.Size([4, 3, 32, 32])
        >>> folder.cleanup()
    """

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
        self.skip_corrupt = skip_corrupt
        self.max_epochs = max_epochs
        self.category_names: list[str] = []
        self.ranges = PixelRanges()
        shared = {
            "test_split_mode": test_split_mode,
            "test_split_ratio": test_split_ratio,
            "val_split_mode": val_split_mode,
            "val_split_ratio": val_split_ratio,
            "seed": seed,
        }
        shared = {name: value for name, value in shared.items() if value is not None}
        if datasets is None:
            one = {"dataset": dataset, "root": root, "categories": categories, "dataset_args": dataset_args}
            entries = [one]
        elif root is None and categories is None and dataset_args is None:
            entries = [{"dataset": entry} if isinstance(entry, str) else entry for entry in datasets]
        else:
            msg = "with datasets, put root, categories and dataset_args into its entries"
            raise ValueError(msg)
        self._sources = [_source(_plain(entry), shared) for entry in entries]

    def prepare_data(self) -> None:
        """Let the datamodules of all categories prepare their data, which may download them."""
        for source in self._sources:
            source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Set up all categories and apply ``max_epochs``; without validation images, have each epoch saved.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``; all subsets are made in any of them.
        """
        super().setup(stage)
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
        """Give what the order of the training images depends on: the seed, and the epoch that comes next."""
        return {**self._order, "epoch": self.trainer.fit_loop.epoch_progress.current.processed}  # type: ignore[union-attr]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the order of the training images from a checkpoint.

        Args:
            state_dict: What :meth:`state_dict` gave.
        """
        self._order |= state_dict

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
        return one_kind_a_batch(super().val_dataloader()) if hasattr(self, "val_data") else []

    def test_dataloader(self) -> EVAL_DATALOADERS:
        """The test images."""
        return one_kind_a_batch(super().test_dataloader())

    def _setup(self, _stage: str | None = None) -> None:
        samples, datamodule_of = self._samples_of_categories()
        self.ranges, deep = find_ranges(path for table in samples.values() for path in table["image_path"])
        if deep:
            logger.info("%d images have more than 8 bits; from black to white go %s", deep, self.ranges)
        task = tasks(samples)
        train: dict[str, AnomalibDataset] = {}
        val: dict[str, AnomalibDataset] = {}
        test: dict[str, AnomalibDataset] = {}
        for name, table in samples.items():
            train[name], of_validation, test[name] = split_samples(datamodule_of[name], table, task[name], self.ranges)
            if of_validation is not None:
                val[name] = of_validation
        self.category_names = sorted(train)
        self.train_data = MultiCategoryDataset(train, ranges=self.ranges)
        self.test_data = MultiCategoryDataset(test, ranges=self.ranges)
        if val:
            self.val_data = MultiCategoryDataset(val, ranges=self.ranges)
        if self.skip_corrupt:
            leave_out_unreadable(self.train_data, self.test_data, *([self.val_data] if val else []))  # type: ignore[arg-type]
            if lost := sorted(set(train) - set(self.train_data.samples["category"])):
                msg = f"cannot read any training image of {', '.join(lost)}; name the other categories in `categories`"
                raise ValueError(msg)
        _warn_about_test_sets(test)

    def _samples_of_categories(self) -> tuple[dict[str, pd.DataFrame], dict[str, AnomalibDataModule]]:
        """The samples and anomalib's datamodule of each category, by its name."""
        entries = [Entry(source.dataset, source.root, source.present()) for source in self._sources]
        samples, datamodule_of = {}, {}
        for source, names in zip(self._sources, category_names(entries), strict=True):
            for category, name in names.items():
                samples[name] = source.samples(category, check=not self.skip_corrupt)
                datamodule_of[name] = source.build(category)
        return samples, datamodule_of

    def _create_test_split(self) -> None:
        """Nothing to do: the datamodule of each category has split its images."""

    def _create_val_split(self) -> None:
        """Nothing to do: the datamodule of each category has split its images."""


def _plain(value: Any) -> Any:  # noqa: ANN401
    """The plain lists and dicts in a configuration of OmegaConf, which anomalib's pipelines pass on."""
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _source(entry: dict[str, Any], shared: dict[str, Any]) -> CategorySource:
    keys = ("dataset", "root", "categories", "dataset_args")
    if "dataset" not in entry or not set(entry) <= set(keys):
        msg = f"an entry of datasets has the keys {', '.join(keys)}, the first of them always; got {entry}"
        raise ValueError(msg)
    arguments = {**shared, **_plain(entry.get("dataset_args") or {})}
    return CategorySource(entry["dataset"], entry.get("root"), entry.get("categories"), arguments)


def _warn_about_test_sets(test: dict[str, AnomalibDataset]) -> None:
    maskless = sorted(name for name, dataset in test.items() if dataset.task != TaskType.SEGMENTATION)
    if 0 < len(maskless) < len(test):
        logger.warning("Pixel metrics leave out the categories without masks: %s", ", ".join(maskless))
    for name, dataset in test.items():
        without = dataset.samples[dataset.samples["mask_path"].map(len) == 0]
        without = without[without["label_index"] == LabelName.ABNORMAL]
        if len(without) and name not in maskless:
            logger.warning(
                "Pixel metrics leave out %d defective images of %s that have no mask: %s",
                len(without),
                name,
                ", ".join(without["image_path"][:20]) + (" and more" if len(without) > 20 else ""),
            )
    for has, kind, way_out in (
        ("has_normal", "normal", "; test_split_mode='from_dir' keeps those that the data set has"),
        ("has_anomalous", "defective", ""),
    ):
        if one_sided := sorted(name for name, dataset in test.items() if not getattr(dataset, has)):
            logger.warning("No %s test images, so no AUROC of their own, in %s%s", kind, ", ".join(one_sided), way_out)
