"""The subsets of a category, split as anomalib's datamodule of its data set does."""

from __future__ import annotations

import copy
import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from anomalib import TaskType
from anomalib.data import AnomalibDataModule, AnomalibDataset
from anomalib.data.utils import LabelName, Split, ValSplitMode, synthetic

from anomalib_ccl.data.ranges import PixelRanges
from anomalib_ccl.data.reading import read_image

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pandas as pd
    from torch import Tensor

# Whatever their split mode, their folders of validation images are used.
_WITH_VALIDATION = {"MVTecAD2", "MVTecLOCO"}


class CategoryImages(AnomalibDataset):
    """The images of a category as a data set that anomalib's datamodules can split.

    Args:
        samples: A table of :class:`~anomalib_ccl.data.layouts.Sample`, with its task in ``attrs``.
    """

    def __init__(self, samples: pd.DataFrame) -> None:
        super().__init__()
        self.samples = samples

    @AnomalibDataset.samples.setter  # type: ignore[attr-defined]
    def samples(self, samples: pd.DataFrame) -> None:
        """Set the samples; unlike anomalib, without a look for the file of each at each split."""
        self._samples = samples.sort_values(by="image_path", ignore_index=True)


def tasks(samples: Mapping[str, pd.DataFrame]) -> dict[str, TaskType]:
    """Tell which categories have masks.

    Args:
        samples: The samples of each category, by its name.

    Returns:
        Segmentation for the categories with masks, and, if there are any, for those without defects yet, whose masks
        are all black; classification for the others.
    """
    masked = {name: bool((table["mask_path"].map(len) > 0).any()) for name, table in samples.items()}
    found = {}
    for name, table in samples.items():
        has_defects = (table["label_index"] == LabelName.ABNORMAL).any()
        has_masks = masked[name] if has_defects else any(masked.values())
        found[name] = TaskType.SEGMENTATION if has_masks else TaskType.CLASSIFICATION
    return found


def split_samples(
    datamodule: AnomalibDataModule, samples: pd.DataFrame, task: TaskType, ranges: PixelRanges
) -> tuple[AnomalibDataset, AnomalibDataset | None, AnomalibDataset]:
    """Split the samples of a category.

    Args:
        datamodule: anomalib's datamodule of the category, which need not be able to read its folders.
        samples: A table of :class:`~anomalib_ccl.data.layouts.Sample`.
        task: Whether its images have masks.
        ranges: Black and white of its images, from which synthetic defects are made.

    Returns:
        The training, validation and test images; no validation images where there are none.
    """
    samples.attrs["task"] = task.value
    parts = {split: CategoryImages(samples[samples["split"] == split.value]) for split in Split}
    datamodule.train_data, datamodule.test_data = parts[Split.TRAIN], parts[Split.TEST]
    own_validation = type(datamodule).__name__ in _WITH_VALIDATION
    if len(parts[Split.VAL]) and (own_validation or datamodule.val_split_mode == ValSplitMode.FROM_DIR):
        datamodule.val_data = parts[Split.VAL]
    if len(datamodule.train_data) > 1:  # so that a few training images give one for the test, where it has none
        datamodule.test_split_ratio = max(datamodule.test_split_ratio, 1 / len(datamodule.train_data))
    with _synthetic_images_from(ranges):
        # The test images of MVTecAD2 stay together.
        if "test_split_mode" in inspect.signature(type(datamodule)).parameters:
            datamodule._create_test_split()
        if datamodule.val_split_mode == ValSplitMode.FROM_TEST and not len(datamodule.test_data):
            datamodule.val_data = copy.deepcopy(datamodule.test_data)  # anomalib cannot split nothing
        else:
            datamodule._create_val_split()
    return datamodule.train_data, getattr(datamodule, "val_data", None), datamodule.test_data


@contextmanager
def _synthetic_images_from(ranges: PixelRanges) -> Iterator[None]:
    """Have anomalib make synthetic defects on images as they are read in training."""

    def read(path: str, *, as_tensor: bool) -> Tensor:
        del as_tensor
        return read_image(path, ranges)

    module: Any = synthetic
    anomalibs_own = module.read_image
    module.read_image = read
    try:
        yield
    finally:
        module.read_image = anomalibs_own
