"""What was meant by a name that is not there."""

from __future__ import annotations

import re
from difflib import SequenceMatcher, get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def nearest_first(name: str, known: Iterable[str]) -> list[str]:
    """Order known names by their likeness to one that is not among them.

    Args:
        name: The unknown name.
        known: The known ones.

    Returns:
        All known names: those that may have been meant first, then the others in the order of the alphabet.

    Example:
        >>> nearest_first("cabel", ["bottle", "zipper", "cable", "capsule"])
        ['cable', 'bottle', 'capsule', 'zipper']
    """
    folded = name.casefold()

    def likeness(other: str) -> float:
        ratio = SequenceMatcher(None, folded, other.casefold()).ratio()
        return ratio if ratio > 0.6 else 0

    return sorted(sorted(known), key=likeness, reverse=True)


def alike(one: str, other: str) -> bool:
    """Tell whether two names differ in nothing but case and punctuation.

    Example:
        >>> alike("MVTec_AD", "MVTecAD"), alike("MVTec_AD_2", "MVTecAD")
        (True, False)
    """
    return re.sub(r"[\W_]", "", one).casefold() == re.sub(r"[\W_]", "", other).casefold()


def nearest_folder(path: Path) -> Path | None:
    """Find the folder that was meant by the path of one that is not there.

    Args:
        path: The path, absolute.

    Returns:
        The path with the first part that is not there replaced by the most similar one that is, if that leads to a
        folder; else None.
    """
    there = next(parent for parent in path.parents if parent.is_dir())
    missing, *rest = path.relative_to(there).parts
    names = {folder.name.casefold(): folder for folder in there.iterdir() if folder.is_dir()}
    for match in get_close_matches(missing.casefold(), names, n=3):
        if (near := names[match].joinpath(*rest)).is_dir():
            return near
    return None
