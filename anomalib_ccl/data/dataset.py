"""Several categories as one data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from anomalib import TaskType
from anomalib.data import AnomalibDataset, ImageBatch, ImageItem
from anomalib.data.utils import LabelName
from torchvision.tv_tensors import Mask

from anomalib_ccl.data.ranges import PixelRanges
from anomalib_ccl.data.reading import read_image, read_masks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anomalib.data import DatasetItem
    from anomalib.data.dataclasses.generic import BatchIterateMixin
    from torchvision.transforms.v2 import Transform


class MultiCategoryDataset(AnomalibDataset):
    """The images of several categories.

    ``samples`` joins the samples of the categories. It adds the columns ``category`` and ``masked``, which says of an
    image whether it comes with a mask: a defective one if its mask is there, a normal one, whose mask is black, if the
    defects of its category have masks. ``image_path`` holds the strings that the batches carry.

    The images with a mask come first. A batch has ``gt_mask`` only if all of its images have one, so batches of one
    kind of image, which :class:`~anomalib_ccl.data.sampler.MaskBatchSampler` makes, lose no mask.

    Args:
        datasets: The data set of each category, by the name of the category.
        augmentations: Transform of image and mask.
        ranges: Black and white of the images; see :mod:`anomalib_ccl.data.reading`.

    Attributes:
        ranges: As the argument; those of the training where a trained model reads the images.

    Raises:
        OSError: From ``dataset[index]``, if an image or its mask cannot be read; the message has the path.
    """

    def __init__(
        self,
        datasets: Mapping[str, AnomalibDataset],
        augmentations: Transform | None = None,
        ranges: PixelRanges | None = None,
    ) -> None:
        super().__init__(augmentations=augmentations)
        self.ranges = ranges or PixelRanges()
        frames = [
            # The data sets themselves stand in the frame, so that subsets, sums and copies share them. They
            # must: a synthetic data set of anomalib deletes its files with the last copy made of it.
            dataset.samples.assign(category=category, dataset=dataset, masked=_masked(dataset))  # type: ignore[arg-type]
            for category, dataset in sorted(datasets.items())
        ]
        samples = pd.concat([frame for frame in frames if len(frame)] or frames, ignore_index=True)
        all_masked = all(dataset.task == TaskType.SEGMENTATION for dataset in datasets.values())
        samples.attrs["task"] = TaskType.SEGMENTATION if all_masked else TaskType.CLASSIFICATION
        # Not through the property: it would look for every file again and undo the order.
        self._samples = samples.sort_values("masked", ascending=False, kind="stable", ignore_index=True)

    def __getitem__(self, index: int) -> DatasetItem:
        """Read one image with its mask and label."""
        sample = self.samples.iloc[index]
        try:
            return self._read(sample)
        except Exception as error:
            way_out = "repair or remove it, or skip such images with skip_corrupt=true"
            msg = f"cannot read image {sample['image_path']} or its mask: {error}; {way_out}"
            raise OSError(msg) from error

    def _read(self, sample: Any) -> ImageItem:  # noqa: ANN401
        path, masks = sample["image_path"], sample["mask_path"]
        image, mask = read_image(path, self.ranges), None
        masks = [masks] if isinstance(masks, str) else masks
        if sample["masked"]:
            size = (image.shape[-2], image.shape[-1])
            is_normal = sample["label_index"] == LabelName.NORMAL
            mask = Mask(torch.zeros(size, dtype=torch.uint8)) if is_normal else read_masks(masks, path, size)
        if self.augmentations:
            image, mask = self.augmentations(image, mask) if mask is not None else (self.augmentations(image), None)
        label = None if sample["label_index"] == LabelName.UNKNOWN else torch.tensor(sample["label_index"])
        return ImageItem(image=image, gt_mask=mask, gt_label=label, image_path=path, mask_path=masks[0])

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


def _masked(dataset: AnomalibDataset) -> pd.Series:
    """Which images of a category come with a mask."""
    samples = dataset.samples
    has_mask = samples["mask_path"].map(lambda masks: isinstance(masks, list) or bool(masks)).astype(bool)
    normal = samples["label_index"] == LabelName.NORMAL
    return (has_mask | normal) & (dataset.task == TaskType.SEGMENTATION)


def _collate(items: list[ImageItem]) -> BatchIterateMixin:
    # anomalib's own collate asks the first item which fields there are, and fails if a later one lacks one.
    for field in ("gt_mask", "gt_label"):
        if any(getattr(item, field) is None for item in items):
            for item in items:
                setattr(item, field, None)
    return ImageBatch.collate(items)
