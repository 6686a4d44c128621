"""Whether the plug-in is on, and what it says when it fails. Needs nothing but ``os``, like the import hook."""

import os

DISABLE_VARIABLE = "ANOMALIB_CCL_DISABLE"

_reported: "set[str]" = set()


def disabled() -> bool:
    """Tell whether the user has switched the plug-in off with ``ANOMALIB_CCL_DISABLE=1``.

    Returns:
        False if the variable is unset, empty or ``0``; True for any other value.
    """
    return os.environ.get(DISABLE_VARIABLE, "") not in {"", "0"}


def report(error: Exception) -> None:
    """Warn that the plug-in failed, once for each cause; anomalib goes on.

    Args:
        error: What went wrong.
    """
    cause = f"{type(error).__name__}: {error}"
    if cause in _reported:
        return
    _reported.add(cause)
    import warnings  # noqa: PLC0415  # not loaded at the start of an interpreter

    warnings.warn(
        f"anomalib-ccl could not plug itself into anomalib, which goes on without it. Cause: {cause}. "
        "`python -c 'from anomalib_ccl import CCL, MultiCategory'` shows where it happened; "
        f"{DISABLE_VARIABLE}=1 switches the plug-in off.",
        RuntimeWarning,
        stacklevel=2,
    )
