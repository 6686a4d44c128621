"""Images that cannot be read, found and left out before a run rather than in the middle of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

if TYPE_CHECKING:
    from anomalib_ccl.data.dataset import MultiCategoryDataset

logger = logging.getLogger(__name__)


def leave_out_unreadable(*datasets: MultiCategoryDataset) -> None:
    """Remove the images that cannot be read, or whose mask cannot, from data sets, with a warning for each.

    Reads every file once. Leaving images out later, when a batch is made, would leave batches too
    small, or empty, for the losses and for other processes, and images without scores.

    Args:
        datasets: The data sets, without augmentations; an image may be in several.
    """
    reasons: dict[str, str] = {}
    for dataset in datasets:
        paths = dataset.samples["image_path"]
        new = [index for index, path in enumerate(paths) if path not in reasons]
        for index in tqdm(new, "Checking images", disable=None):
            path = paths[index]
            if reason := _reason(dataset, index):
                logger.warning("Skipped image %s: %s", path, reason)
            reasons[path] = reason
        dataset.keep([index for index, path in enumerate(paths) if not reasons[path]])


def _reason(dataset: MultiCategoryDataset, index: int) -> str:
    """Why an image cannot be read; empty if it can."""
    try:
        dataset[index]
    except OSError as error:
        return f"{type(error.__cause__).__name__}: {error.__cause__}"
    return ""
