"""The subsets of a category, split as anomalib's datamodule of its data set does."""

import copy
import inspect
from collections.abc import Iterable, Mapping

import pandas as pd
from anomalib import TaskType
from anomalib.data import AnomalibDataModule, AnomalibDataset
from anomalib.data.utils import LabelName, Split, TestSplitMode, ValSplitMode

from anomalib_ccl.data.reading import file_of, is_high_bit_depth, orientation_of
from anomalib_ccl.errors import InputError

# Whatever their split mode, their folders of validation images are used.
_WITH_VALIDATION = {"MVTecAD2", "MVTecLOCO"}
_SUBSETS = ("train", "test", "val")


class _CategoryImages(AnomalibDataset):
    """The images of a category, a table with its task in ``attrs``, as anomalib's datamodules can split them."""

    def __init__(self, samples: pd.DataFrame) -> None:
        super().__init__()
        self.samples = samples

    @AnomalibDataset.samples.setter  # type: ignore[attr-defined]
    def samples(self, samples: pd.DataFrame) -> None:
        """Set the samples; unlike anomalib, without a look for the file of each at each split."""
        self._samples = samples.sort_values(by="image_path", ignore_index=True)


def tasks(samples: Mapping[str, pd.DataFrame]) -> dict[str, TaskType]:
    """Say which categories have masks: those without defects yet, whose masks are all black, if any other has."""
    masked = {name: bool((table["mask_path"].map(len) > 0).any()) for name, table in samples.items()}
    found = {}
    for name, table in samples.items():
        has_defects = (table["label_index"] == LabelName.ABNORMAL).any()
        has_masks = masked[name] if has_defects else any(masked.values())
        found[name] = TaskType.SEGMENTATION if has_masks else TaskType.CLASSIFICATION
    return found


def check_roles(samples: Mapping[str, pd.DataFrame]) -> None:
    """Check that each image is in one split of one category, whose name means nothing else in a table."""
    roles: dict[str, str] = {}
    for name, table in samples.items():
        if name in {"unknown", "mean"}:
            raise InputError(
                f"a category cannot be called {name!r}, as tables have rows of that name; rename its folder"
            )
        for path, split in zip(table["image_path"], table["split"], strict=True):
            role = f"the {split} images of {name}"
            if path in roles:
                raise InputError(f"image {path} is among {roles[path]} and again among {role}; leave it out of one")
            roles[path] = role


def split_samples(datamodule: AnomalibDataModule, samples: pd.DataFrame, task: TaskType) -> dict[str, AnomalibDataset]:
    """Split the samples of a category as its datamodule does, into ``train``, ``test`` and perhaps ``val``."""
    if "synthetic" in {datamodule.test_split_mode, datamodule.val_split_mode}:
        _check_synthetic(samples["image_path"][samples["label_index"] == LabelName.NORMAL])
    samples.attrs["task"] = task.value
    parts = {split: _CategoryImages(samples[samples["split"] == split.value]) for split in Split}
    datamodule.train_data, datamodule.test_data = parts[Split.TRAIN], parts[Split.TEST]
    own_validation = type(datamodule).__name__ in _WITH_VALIDATION
    if len(parts[Split.VAL]) and (own_validation or datamodule.val_split_mode == ValSplitMode.FROM_DIR):
        datamodule.val_data = parts[Split.VAL]
    try:
        if "test_split_mode" in inspect.signature(type(datamodule)).parameters:  # those of MVTecAD2 stay together
            _split_test(datamodule)
        _split_val(datamodule)
    except OSError as error:
        raise InputError(f"cannot make synthetic defects: {error}") from error
    return {name: getattr(datamodule, f"{name}_data") for name in _SUBSETS if hasattr(datamodule, f"{name}_data")}


def _split_test(datamodule: AnomalibDataModule) -> None:
    """Make the test images as anomalib does, but for a ratio of 0, which takes none from the training images."""
    if datamodule.test_data.has_normal or datamodule.test_split_ratio:
        if datamodule.test_split_ratio > 0 and len(datamodule.train_data) > 1:
            # so that a few training images give one for the test, where it has none
            datamodule.test_split_ratio = max(datamodule.test_split_ratio, 1 / len(datamodule.train_data))
        AnomalibDataModule._create_test_split(datamodule)  # no public name does it alone
    elif datamodule.test_split_mode == TestSplitMode.SYNTHETIC:
        datamodule.test_data = datamodule.test_data.subsample([])


def _split_val(datamodule: AnomalibDataModule) -> None:
    """Make the validation images as anomalib does, but for a ratio of 0, which makes none."""
    split_off = datamodule.val_split_mode not in {ValSplitMode.NONE, ValSplitMode.SAME_AS_TEST, ValSplitMode.FROM_DIR}
    if split_off and not datamodule.val_split_ratio:
        return
    if datamodule.val_split_mode == ValSplitMode.FROM_TEST and not len(datamodule.test_data):
        datamodule.val_data = copy.deepcopy(datamodule.test_data)  # anomalib cannot split nothing
    else:
        AnomalibDataModule._create_val_split(datamodule)  # no public name does it alone


def _check_synthetic(paths: Iterable[str]) -> None:
    """Check that anomalib can read the images of which it makes synthetic defects."""
    for path in paths:
        if file_of(path)[1] is not None or is_high_bit_depth(path) or orientation_of(path) > 1:
            what = "has more than 8 bits, is turned by its EXIF data or is a view of MANTA, which anomalib cannot read"
            raise InputError(f"no synthetic defects can be made of {path}: it {what}; choose another split mode")
