"""Puts CCL, MultiCategory and MANTA into anomalib's registries, and the report into Lightning's.

Called by the import hook once a registry of anomalib has been imported, and by Lightning, through the
entry-point group ``lightning.pytorch.callbacks_factory``, whenever a ``Trainer`` is made.
"""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from anomalib_ccl.plugin import switch

if TYPE_CHECKING:
    from lightning.pytorch import Callback

# The leaf modules, not their packages: this runs while a user's own import of such a package is under way.
_NAMES = {
    "anomalib.data": {"MultiCategory": "anomalib_ccl.data.multi_category", "MANTA": "anomalib_ccl.data.manta"},
    "anomalib.models": {"CCL": "anomalib_ccl.model.lightning_model"},
}


def register(registry: ModuleType) -> None:
    """Make our classes public names of one of anomalib's registries.

    As an attribute of the registry a class is found by class path; being imported at all, it is found by
    bare name, which anomalib and jsonargparse look up among the subclasses. ``anomalib.models`` also gets
    ``anomalib_ccl`` as a module whose class paths ``get_model`` accepts.

    Args:
        registry: The module ``anomalib.models`` or ``anomalib.data``, fully imported.
    """
    for name, module in _NAMES[registry.__name__].items():
        setattr(registry, name, getattr(import_module(module), name))
        registry.__all__.append(name)
    if registry.__name__ == "anomalib.data":
        import_module("anomalib_ccl.data.prediction").mend_anomalib()
    if registry.__name__ == "anomalib.models":
        registry.ALLOWED_MODULES.add("anomalib_ccl")


def register_commands(module: ModuleType) -> None:
    """Have ``anomalib`` on the command line run our :class:`~anomalib_ccl.plugin.commands.Commands`.

    Behind them are :class:`~anomalib_ccl.plugin.trained_commands.TrainedCommands`, for models that are trained already.

    Args:
        module: The module ``anomalib.cli.cli``, fully imported.
    """
    from anomalib_ccl.plugin import commands, excepthook, run_log, trained_commands  # noqa: PLC0415  # heavy

    if Path(sys.argv[0]).stem != "anomalib":  # a script of the user's, which may never make a command
        run_log.held().release()
    excepthook.explain_bad_input()
    name = "AnomalibCLI"
    setattr(module, name, type(name, (commands.Commands, trained_commands.TrainedCommands, getattr(module, name)), {}))


def callbacks() -> "list[Callback]":
    """Make the callbacks that every Lightning ``Trainer`` in this environment gets.

    Returns:
        The run's folder, the reading of images, the report of each category, the steadiness and the report of each
        image, or nothing: if the plug-in is switched off; if ``anomalib.data`` has not been imported, so that a Trainer
        far from anomalib costs nothing; or, after a warning, if they cannot be made.

    Example:
        >>> import anomalib.data
        >>> [type(callback).__name__ for callback in callbacks()]
        ['RunFolder', 'ReadAsTrained', 'CategoryReport', 'Steadiness', 'ImageReport']
    """
    if switch.disabled() or "anomalib.data" not in sys.modules:
        return []
    try:
        from anomalib_ccl.data.prediction import ReadAsTrained  # noqa: PLC0415  # heavy
        from anomalib_ccl.metrics import CategoryReport, ImageReport, Steadiness  # noqa: PLC0415  # heavy
        from anomalib_ccl.plugin.run_folder import RunFolder  # noqa: PLC0415

        return [RunFolder(), ReadAsTrained(), CategoryReport(), Steadiness(), ImageReport()]
    except Exception as error:  # a Trainer must work whatever is wrong here
        switch.report(error)
        return []
