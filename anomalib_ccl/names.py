"""Names that are known, and which of them was meant by one that is not."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from anomalib_ccl.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable


def check_choice(kind: str, name: object, known: Iterable[str]) -> None:
    """Refuse what is none of a few names.

    Example:
        >>> check_choice("colour", "reed", ["red", "green"])
        Traceback (most recent call last):
        ...
        anomalib_ccl.errors.InputError: unknown colour 'reed'; choose one of red, green
    """
    names = list(known)
    if name not in names:
        msg = f"unknown {kind} {name!r}; choose one of {', '.join(names)}"
        raise InputError(msg)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Find the known name that was probably meant.

    Args:
        name: A name that is not known.
        known: The known names.

    Returns:
        The most similar one, whatever the case of its letters; ``None`` if none is similar.

    Example:
        >>> nearest("cabel", ["bottle", "cable", "capsule"]), nearest("mvtecad", ["MVTecAD", "Visa"])
        ('cable', 'MVTecAD')
        >>> nearest("screw", ["bottle", "cable"])
    """
    folded = {other.casefold(): other for other in known}
    found = get_close_matches(name.casefold(), folded, n=1)
    return folded[found[0]] if found else None
