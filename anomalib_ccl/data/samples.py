"""The samples behind a data loader, whatever a user has wrapped around them.

All functions take a data set of anomalib, or subsets and sums of such, as torch's ``Subset``, ``ConcatDataset`` and
``random_split`` make them.
"""

from collections.abc import Callable
from copy import copy
from typing import Any

import pandas as pd
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.transforms.v2 import Transform

from anomalib_ccl.errors import InputError


def samples_of(dataset: Dataset) -> pd.DataFrame:
    """Give the table of the samples of a data set, in the order of its items; an ``InputError`` if it has none."""
    if isinstance(dataset, Subset):
        return samples_of(dataset.dataset).iloc[list(dataset.indices)].reset_index(drop=True)
    if isinstance(dataset, ConcatDataset):
        return pd.concat([samples_of(part) for part in dataset.datasets], ignore_index=True)
    samples = getattr(dataset, "samples", None)
    if isinstance(samples, pd.DataFrame):
        return samples
    way_out = "train on a datamodule, or on a data set of anomalib, a Subset or a ConcatDataset of such"
    raise InputError(f"the images of a {type(dataset).__name__} have no table of samples; {way_out}")


def datasets_of(dataset: Dataset) -> list[Dataset]:
    """Find the data sets that subsets and sums are made of, each as often as it is used."""
    if isinstance(dataset, Subset):
        return datasets_of(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return [found for part in dataset.datasets for found in datasets_of(part)]
    return [dataset]


def collate_of(dataset: Dataset) -> Callable | None:
    """Find the function that joins items of a data set to a batch, which a ``Subset`` does not give."""
    return getattr(datasets_of(dataset)[0], "collate_fn", None)


def with_augmentations(dataset: Any, augmentations: Transform | None) -> Any:  # noqa: ANN401  # the type it is given
    """Copy a data set but for its augmentations; the given one keeps its own."""
    twin = copy(dataset)
    if isinstance(dataset, Subset):
        twin.dataset = with_augmentations(dataset.dataset, augmentations)
    elif isinstance(dataset, ConcatDataset):
        twin.datasets = [with_augmentations(part, augmentations) for part in dataset.datasets]
    else:
        twin.augmentations = augmentations
    return twin
