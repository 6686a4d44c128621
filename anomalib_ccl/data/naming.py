"""What the categories of several data sets are called."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """One of several data sets.

    Attributes:
        dataset: The class name of its datamodule.
        root: Its folder, absolute.
        categories: Its categories.
    """

    dataset: str
    root: Path
    categories: list[str]


def category_names(entries: list[Entry]) -> list[dict[str, str]]:
    """Name the categories of several data sets, each by a name of its own.

    Where the entries are of different kinds, their categories get the kind in front: ``MVTecAD/bottle``. Those of one
    kind keep their names; only a name that is in several of them gets the name of its folder in front:
    ``line1/bottle`` and ``line2/bottle``.

    Args:
        entries: The data sets.

    Returns:
        For each entry the name of each category.

    Raises:
        ValueError: If one category of one folder is in two entries.

    Example:
        >>> one = Entry("Folder", Path("/data/line1"), ["bottle", "cable"])
        >>> two = Entry("Folder", Path("/data/line2"), ["bottle"])
        >>> category_names([one, two])
        [{'bottle': 'line1/bottle', 'cable': 'cable'}, {'bottle': 'line2/bottle'}]
        >>> category_names([two, Entry("MVTecAD", Path("/data/MVTecAD"), ["bottle"])])
        [{'bottle': 'Folder/bottle'}, {'bottle': 'MVTecAD/bottle'}]
    """
    several_kinds = len({entry.dataset for entry in entries}) > 1
    times = Counter((entry.dataset, category) for entry in entries for category in entry.categories)
    names = []
    for entry in entries:
        kind = entry.dataset if several_kinds else ""
        roots = [other.root.parent for other in entries if other.dataset == entry.dataset]
        folder = entry.root.relative_to(os.path.commonpath(roots))
        names.append(
            {
                category: Path(kind, folder if times[entry.dataset, category] > 1 else "", category).as_posix()
                for category in entry.categories
            }
        )
    seen = Counter(name for of_entry in names for name in of_entry.values())
    for entry, of_entry in zip(entries, names, strict=True):
        for category, name in of_entry.items():
            if seen[name] > 1:
                msg = (
                    f"category '{entry.dataset}/{category}' is in two entries of datasets; leave it out of one of them"
                )
                raise ValueError(msg)
    return names
