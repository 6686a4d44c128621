"""The import hook: makes CCL known to anomalib as soon as anomalib is imported, and not before.

``anomalib_ccl.pth`` imports this package at the start of every interpreter of the environment, so this file
and :mod:`anomalib_ccl.plugin.switch` need nothing but ``sys`` and ``os``, which are always loaded. All that is heavy
waits in :mod:`anomalib_ccl.plugin.registry` until anomalib's own registries have been imported.
"""

import sys

from anomalib_ccl.plugin.switch import disabled, report

# Type checkers take this name as true; `typing` alone would cost more than the whole hook.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType
else:
    Loader = object

# Runs with anomalib's commands, and in a program that makes them itself, then perhaps long after the registries.
COMMANDS = "anomalib.cli.cli"
OWN_COMMANDS = [["-m", f"anomalib_ccl.{name}"] for name in ("insight", "limits", "recalibrate")]
AWAITED = ("anomalib.data", "anomalib.models", COMMANDS)


class RegistryLoader(Loader):
    """Loader that calls back before and after the module runs; in all else the loader it stands for.

    Args:
        loader: The module's own loader, put back on the module before the module runs.
        loading: Called with the module before it runs.
        loaded: Called with the module after it ran without an error.
    """

    def __init__(
        self, loader: "Loader", loading: "Callable[[ModuleType], None]", loaded: "Callable[[ModuleType], None]"
    ) -> None:
        self._loader = loader
        self._loading = loading
        self._loaded = loaded

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        """Create the module as its own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: "ModuleType") -> None:
        """Run the module, with a call before and after."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loading(module)
        self._loader.exec_module(module)
        self._loaded(module)


class RegistryFinder:
    """Finder on ``sys.meta_path`` that waits for anomalib's registries and commands, and leaves when it has seen all.

    Example:
        >>> RegistryFinder().find_spec("json") is None
        True
    """

    def __init__(self) -> None:
        self._awaited = set(AWAITED)

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Find a registry, or the commands, as the finders behind this one do, and have its loader call back.

        Args:
            fullname: Absolute name of the module.
            path: Search path of its parent package.
            target: Module to be reloaded, if any.

        Returns:
            The module's spec, or None for any other module.
        """
        if fullname not in self._awaited:
            return None
        # Only those behind: two finders of this kind that asked each other would never end.
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            # Up to Python 3.11 a finder may still lack find_spec.
            spec = finder.find_spec(fullname, path, target) if hasattr(finder, "find_spec") else None
            if spec is not None and spec.loader is not None:
                spec.loader = RegistryLoader(spec.loader, self.loading, self.loaded)
                return spec
        return None

    def loading(self, module: "ModuleType") -> None:
        """Listen to what is said from the import of the commands on; this package has one of its own.

        Args:
            module: The module ``anomalib.models``, ``anomalib.data`` or ``anomalib.cli.cli``, not yet run.
        """
        if module.__name__ != COMMANDS and sys.orig_argv[1:3] not in OWN_COMMANDS:
            return
        try:
            from anomalib_ccl.plugin import run_log  # noqa: PLC0415  # heavy

            run_log.hold()
        except Exception as error:  # anomalib must work whatever is wrong here
            report(error)

    def loaded(self, module: "ModuleType") -> None:
        """Plug in where a module has just been imported.

        Args:
            module: The module ``anomalib.models``, ``anomalib.data`` or ``anomalib.cli.cli``.
        """
        self._awaited.discard(module.__name__)
        if not self._awaited:
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
        try:
            from anomalib_ccl.plugin import registry  # noqa: PLC0415  # heavy

            if module.__name__ == COMMANDS:
                registry.register_commands(module)
            else:
                registry.register(module)
        except Exception as error:  # anomalib must work whatever is wrong here
            report(error)


def install() -> None:
    """Wait for anomalib's registries and commands; those already imported are served at once.

    Does nothing if :func:`disabled`.
    """
    if disabled():
        return
    finder = RegistryFinder()
    sys.meta_path.insert(0, finder)
    for name in AWAITED:
        if name in sys.modules:
            finder.loaded(sys.modules[name])
