"""Several categories as one data set."""

import logging
from collections.abc import Callable, Iterable, Mapping

import pandas as pd
import torch
from anomalib import TaskType
from anomalib.data import AnomalibDataset, ImageBatch, ImageItem
from anomalib.data.dataclasses.generic import BatchIterateMixin
from anomalib.data.utils import LabelName
from torchvision.transforms.v2 import Transform
from torchvision.tv_tensors import Mask
from tqdm.auto import tqdm

from anomalib_ccl.data.masks import read_masks
from anomalib_ccl.data.reading import PixelRanges, read_image
from anomalib_ccl.errors import InputError

logger = logging.getLogger(__name__)


class MultiCategoryDataset(AnomalibDataset):
    """The images of several categories.

    ``samples`` joins the samples of the categories, with the columns ``category`` and ``masked``: whether an image has
    a mask, a defective one if its mask is there, a normal one if the defects of its category have masks. Those with a
    mask come first: a batch has ``gt_mask`` only if all of its images have one, so batches of one kind of image, which
    :class:`~anomalib_ccl.data.sampler.MaskBatchSampler` makes, lose no mask. ``image_path`` is what batches carry.

    Args:
        datasets: The data set of each category, by the name of the category.
        augmentations: Transform of image and mask.
        ranges: Black and white of the images; see :mod:`anomalib_ccl.data.reading`.
        name_empty_masks: Whether a defective image whose mask is empty is named in a warning when it is read.

    Raises:
        InputError: From ``dataset[index]``, if an image or its mask cannot be read; the message has the path.
    """

    def __init__(
        self,
        datasets: Mapping[str, AnomalibDataset],
        augmentations: Transform | None = None,
        ranges: PixelRanges | None = None,
        name_empty_masks: bool = False,
    ) -> None:
        super().__init__(augmentations=augmentations)
        self.ranges = ranges or PixelRanges()
        self.name_empty_masks = name_empty_masks
        frames = [
            # The data sets themselves stand in the frame, so that subsets, sums and copies share them. They
            # must: a synthetic data set of anomalib deletes its files with the last copy made of it.
            dataset.samples.assign(category=category, dataset=dataset, masked=_masked(dataset))  # type: ignore[arg-type]
            for category, dataset in sorted(datasets.items())
        ]
        samples = pd.concat([frame for frame in frames if len(frame)] or frames, ignore_index=True)
        all_masked = all(dataset.task == TaskType.SEGMENTATION for dataset in datasets.values())
        samples.attrs["task"] = TaskType.SEGMENTATION if all_masked else TaskType.CLASSIFICATION
        self.samples = samples

    @AnomalibDataset.samples.setter  # type: ignore[attr-defined]
    def samples(self, samples: pd.DataFrame) -> None:
        """Set the samples; unlike anomalib without a look for the file of each, which views do not have."""
        self._samples = samples.sort_values("masked", ascending=False, kind="stable", ignore_index=True)

    def __getitem__(self, index: int) -> ImageItem:
        """Read one image with its mask and label."""
        sample = self.samples.iloc[index]
        path, masks, label = sample["image_path"], sample["mask_path"], sample["label_index"]
        masks = [masks] if isinstance(masks, str) else masks
        mask = None
        try:
            image = read_image(path, self.ranges)
            size = (image.shape[-2], image.shape[-1])
            if sample["masked"]:
                is_normal = label == LabelName.NORMAL
                mask = Mask(torch.zeros(size, dtype=torch.uint8)) if is_normal else read_masks(masks, path, size)
        except InputError as error:
            raise InputError(f"{error}; repair or remove it, or skip such images with skip_corrupt=true") from error
        if self.name_empty_masks and mask is not None and label == LabelName.ABNORMAL and not mask.any():
            logger.warning("The mask %s of the defective image %s is empty", ", ".join(masks), path)
        if self.augmentations:
            image, mask = self.augmentations(image, mask) if mask is not None else (self.augmentations(image), None)
        gt_label = None if label == LabelName.UNKNOWN else torch.tensor(label)
        return ImageItem(image=image, gt_mask=mask, gt_label=gt_label, image_path=path, mask_path=masks[0])

    @property
    def collate_fn(self) -> Callable:
        """The function that joins items to an ``ImageBatch``."""
        return _collate


def leave_out_unreadable(*datasets: MultiCategoryDataset) -> None:
    """Remove the images that cannot be read, or whose mask cannot, from data sets, with a warning for each.

    Reads every file once. Leaving images out later, when a batch is made, would leave batches too
    small, or empty, for the losses and for other processes, and images without scores.
    """
    readable: dict[str, bool] = {}
    for dataset in datasets:
        paths = dataset.samples["image_path"]
        for index, path in enumerate(tqdm(paths, "Checking images", disable=None)):
            if path in readable:
                continue
            readable[path] = True
            try:
                dataset[index]
            except InputError as error:
                logger.warning("Skipped image %s: %s", path, error.__cause__)
                readable[path] = False
        dataset.samples = dataset.samples[paths.map(readable)]
        dataset.name_empty_masks = False  # which are named by now


def warn_about_test_sets(dataset: MultiCategoryDataset, categories: Iterable[str]) -> None:
    """Say which figures a test on a data set cannot give."""
    test = {name: dataset.samples[dataset.samples["category"] == name] for name in categories}
    masked = {name: samples for name, samples in test.items() if samples["masked"].any()}
    if masked and (maskless := [name for name, samples in test.items() if len(samples) and name not in masked]):
        logger.warning("Pixel metrics leave out the categories without masks: %s", ", ".join(maskless))
    for name, samples in masked.items():
        without = samples[(samples["mask_path"].map(len) == 0) & (samples["label_index"] == LabelName.ABNORMAL)]
        if len(without):
            paths = ", ".join(without["image_path"][:20]) + (" and more" if len(without) > 20 else "")
            msg = "Pixel metrics leave out %d defective images of %s that have no mask: %s"
            logger.warning(msg, len(without), name, paths)
    for label, kind in ((LabelName.NORMAL, "normal"), (LabelName.ABNORMAL, "defective")):
        if one_sided := [name for name, samples in test.items() if not (samples["label_index"] == label).any()]:
            logger.warning("No %s test images, so no AUROC of their own, in %s", kind, ", ".join(one_sided))


def _masked(dataset: AnomalibDataset) -> pd.Series:
    """Which images of a category come with a mask."""
    samples = dataset.samples
    has_mask = samples["mask_path"].map(lambda masks: isinstance(masks, list) or bool(masks)).astype(bool)
    normal = samples["label_index"] == LabelName.NORMAL
    return (has_mask | normal) & (dataset.task == TaskType.SEGMENTATION)


def _collate(items: list[ImageItem]) -> BatchIterateMixin:
    """Join items; anomalib's own collate asks the first which fields there are, and fails if a later one lacks one."""
    for field in ("gt_mask", "gt_label"):
        if any(getattr(item, field) is None for item in items):
            for item in items:
                setattr(item, field, None)
    return ImageBatch.collate(items)
