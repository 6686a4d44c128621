"""Several categories as one data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from anomalib import TaskType
from anomalib.data import AnomalibDataset, ImageBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anomalib.data import DatasetItem, ImageItem
    from anomalib.data.dataclasses.generic import BatchIterateMixin
    from torchvision.transforms.v2 import Transform


class MultiCategoryDataset(AnomalibDataset):
    """The images of several categories, each read by the data set of its own category.

    ``samples`` joins the samples of the categories. It adds a column ``category``, and the columns
    ``dataset`` and ``row``, which say where an item is read. ``image_path`` holds the strings that the
    batches carry.

    Where only some of the categories have masks, those come first, and a batch has ``gt_mask`` only if all of
    its images have one: anomalib's pixel metrics, which pass over batches without masks, then cover the
    categories with masks (but for the one batch in which the two kinds meet), and ``task`` is classification.

    Args:
        datasets: The data set of each category, by the name of the category.
        augmentations: Transform of image and mask, used instead of the data sets' own.

    Raises:
        OSError: From ``dataset[index]``, if an image or its mask cannot be read; the message has the path.
    """

    def __init__(self, datasets: Mapping[str, AnomalibDataset], augmentations: Transform | None = None) -> None:
        super().__init__(augmentations=augmentations)
        masked_first = sorted(datasets.items(), key=lambda item: item[1].task != TaskType.SEGMENTATION)
        frames = [
            # The data sets themselves stand in the frame, so that subsets, sums and copies share them. They
            # must: a synthetic data set of anomalib deletes its files with the last copy made of it.
            dataset.samples.assign(category=category, dataset=dataset, row=range(len(dataset)))  # type: ignore[arg-type]
            for category, dataset in masked_first
        ]
        samples = pd.concat([frame for frame in frames if len(frame)] or frames, ignore_index=True)
        all_masked = all(dataset.task == TaskType.SEGMENTATION for dataset in datasets.values())
        samples.attrs["task"] = TaskType.SEGMENTATION if all_masked else TaskType.CLASSIFICATION
        # Not through the property: it would look for every file again and undo the order.
        self._samples = samples

    def __getitem__(self, index: int) -> DatasetItem:
        """Read one image with its mask and label."""
        sample = self.samples.iloc[index]
        dataset = sample["dataset"]
        dataset.augmentations = self.augmentations
        try:
            return dataset[sample["row"]]
        except Exception as error:
            way_out = "repair or remove it, or skip such images with skip_corrupt=true"
            msg = f"cannot read image {sample['image_path']} or its mask: {error}; {way_out}"
            raise OSError(msg) from error

    def keep(self, indices: Sequence[int]) -> None:
        """Leave out all images but some.

        Args:
            indices: Those that stay, in this order.
        """
        self._samples = self.samples.iloc[list(indices)].reset_index(drop=True)

    @property
    def collate_fn(self) -> Callable:
        """The function that joins items to an ``ImageBatch``."""
        return _collate


def _collate(items: list[ImageItem]) -> BatchIterateMixin:
    # anomalib's own collate asks the first item which fields there are, and fails if a later one lacks one.
    for field in ("gt_mask", "gt_label"):
        if any(getattr(item, field) is None for item in items):
            for item in items:
                setattr(item, field, None)
    return ImageBatch.collate(items)
