"""Sets of options that belong together, by name."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

RecipeName = Literal["paper", "recommended"]


class Options(NamedTuple):
    """The options that a recipe sets; see :class:`~anomalib_ccl.CCL` for what each of them means."""

    projection: str
    skip: bool
    anomaly_map: str
    subtract_usual: bool
    local_weight: float
    global_weight: float
    schedule: str | None


_PAPER = Options("standard", False, "paper", False, 1.0, 1.0, None)
_RECIPES: dict[str, Options] = {
    "paper": _PAPER,
    "recommended": _PAPER._replace(
        skip=True, anomaly_map="refined", subtract_usual=True, global_weight=0.1, schedule="cosine"
    ),
}


def options(recipe: str, given: Mapping[str, Any]) -> Options:
    """Find the options of a recipe.

    Args:
        recipe: Its name.
        given: Arguments by name, None for those that were not given.

    Returns:
        What was given and, for the rest, what the recipe says.

    Raises:
        ValueError: If there is no such recipe.

    Example:
        >>> options("recommended", {"global_weight": 0.5, "schedule": None})[-2:]
        (0.5, 'cosine')
    """
    if recipe not in _RECIPES:
        msg = f"unknown recipe {recipe!r}; choose one of {', '.join(get_args(RecipeName))}"
        raise ValueError(msg)
    chosen = {name: given[name] for name in Options._fields if given.get(name) is not None}
    return _RECIPES[recipe]._replace(**chosen)
