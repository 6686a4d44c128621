"""The samples behind a data loader, whatever a user has wrapped around them."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch.utils.data import ConcatDataset, Subset

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.utils.data import Dataset
    from torchvision.transforms.v2 import Transform


def samples_of(dataset: Dataset) -> pd.DataFrame:
    """Give the table of the samples of a data set, in the order of its items.

    Args:
        dataset: A data set of anomalib, or subsets and sums of such, as torch's ``Subset``, ``ConcatDataset`` and
            ``random_split`` make them.

    Returns:
        A table with a row for each item.

    Raises:
        TypeError: If it is another data set, which has no such table.

    Example:
        >>> from types import SimpleNamespace
        >>> images: Any = SimpleNamespace(samples=pd.DataFrame({"image_path": ["1.png", "2.png", "3.png"]}))
        >>> samples_of(ConcatDataset([Subset(images, [2]), Subset(Subset(images, [0, 1]), [1])]))["image_path"].tolist()
        ['3.png', '2.png']
    """
    if isinstance(dataset, Subset):
        return samples_of(dataset.dataset).iloc[list(dataset.indices)].reset_index(drop=True)
    if isinstance(dataset, ConcatDataset):
        return pd.concat([samples_of(part) for part in dataset.datasets], ignore_index=True)
    samples = getattr(dataset, "samples", None)
    if isinstance(samples, pd.DataFrame):
        return samples
    msg = (
        f"the images of a {type(dataset).__name__} have no table of samples; train on a datamodule, or on a data set "
        "of anomalib, a Subset or a ConcatDataset of such"
    )
    raise TypeError(msg)


def datasets_of(dataset: Any) -> list[Any]:  # noqa: ANN401
    """Find the data sets that subsets and sums are made of.

    Args:
        dataset: As for :func:`samples_of`; or any other, which is made of itself.

    Returns:
        The data sets, each as often as it is used.
    """
    if isinstance(dataset, Subset):
        return datasets_of(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return [found for part in dataset.datasets for found in datasets_of(part)]
    return [dataset]


def collate_of(dataset: Dataset) -> Callable | None:
    """Find the function that joins items of a data set to a batch, which a ``Subset`` does not tell.

    Args:
        dataset: As for :func:`datasets_of`.

    Returns:
        The ``collate_fn`` of the data set that it is made of; None where that has none.
    """
    return getattr(datasets_of(dataset)[0], "collate_fn", None)


def with_augmentations(dataset: Any, augmentations: Transform | None) -> Any:  # noqa: ANN401
    """Copy a data set but for its augmentations.

    Args:
        dataset: As for :func:`samples_of`.
        augmentations: Those of the copy.

    Returns:
        A data set of the same items, which are read with these augmentations. The given one keeps its own.
    """
    twin = copy(dataset)
    if isinstance(dataset, Subset):
        twin.dataset = with_augmentations(dataset.dataset, augmentations)
    elif isinstance(dataset, ConcatDataset):
        twin.datasets = [with_augmentations(part, augmentations) for part in dataset.datasets]
    else:
        twin.augmentations = augmentations
    return twin
