"""Adds CCL, MultiCategory and MANTA to anomalib's registries, and the report to Lightning's callbacks.

Called by the import hook once a registry of anomalib has been imported, and by Lightning, through the
entry-point group ``lightning.pytorch.callbacks_factory``, whenever a ``Trainer`` is made.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from anomalib_ccl.registration import import_hook

if TYPE_CHECKING:
    from lightning.pytorch import Callback

# The leaf modules, not their packages: this runs while a user's own import of such a package is under way.
NAMES = {
    "anomalib.data": {"MultiCategory": "anomalib_ccl.data.multi_category", "MANTA": "anomalib_ccl.data.multi_category"},
    "anomalib.models": {"CCL": "anomalib_ccl.lightning_model"},
}


def register(registry: ModuleType) -> None:
    """Make our classes public names of one of anomalib's registries, where they are not yet.

    As an attribute of the registry a class is found by class path; being imported at all, it is found by
    bare name, which anomalib and jsonargparse look up among the subclasses. ``anomalib.models`` also gets
    ``anomalib_ccl`` as a module whose class paths ``get_model`` accepts.

    Args:
        registry: The module ``anomalib.models`` or ``anomalib.data``, fully imported.
    """
    for name, module in NAMES[registry.__name__].items():
        found = getattr(import_module(module), name, None)  # None while its own import is under way
        if found is not None and name not in registry.__all__:
            setattr(registry, name, found)
            registry.__all__.append(name)
    if registry.__name__ == "anomalib.models":
        registry.ALLOWED_MODULES.add("anomalib_ccl")


def callbacks() -> "list[Callback]":
    """Make the callbacks that every Lightning ``Trainer`` in this environment gets.

    Returns:
        The report of each category, which does nothing unless the datamodule is MultiCategory; or nothing: if the
        plug-in is switched off; if ``anomalib.data`` has not been imported, so that a Trainer far from anomalib costs
        nothing; or, after a warning, if the report cannot be made.

    Example:
        >>> import anomalib.data
        >>> [type(callback).__name__ for callback in callbacks()]
        ['Report']
    """
    if import_hook.disabled() or "anomalib.data" not in sys.modules:
        return []
    try:
        import_module("anomalib.models")  # first, because CCL, which is registered then, needs the report itself
        from anomalib_ccl.reports.report import Report  # noqa: PLC0415  # heavy

        return [Report()]
    except Exception as error:  # a Trainer must work whatever is wrong here
        import_hook.report(error)
        return []
