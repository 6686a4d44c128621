"""The import hook: registers CCL with anomalib as soon as anomalib is imported, and not before.

``anomalib_ccl.pth`` imports this package at the start of every interpreter of the environment, so this file needs
nothing but ``sys`` and ``os``, which are always loaded. All that is heavy waits in
:mod:`anomalib_ccl.registration.registry` until anomalib's own registries have been imported.
"""

import os
import sys

# Type checkers take this name as true; `typing` alone would cost more than the whole hook.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType
else:
    Loader = object

REGISTRIES = ("anomalib.data", "anomalib.models")
# Whose import may be under way when that of a registry, which it needs, ends.
MODEL = "anomalib_ccl.lightning_model"
DISABLE_VARIABLE = "ANOMALIB_CCL_DISABLE"

_reported: "set[str]" = set()


def disabled() -> bool:
    """Tell whether the user has switched the plug-in off with ``ANOMALIB_CCL_DISABLE=1``.

    Returns:
        False if the variable is unset, empty or ``0``; True for any other value.
    """
    return os.environ.get(DISABLE_VARIABLE, "") not in {"", "0"}


def report(error: Exception) -> None:
    """Warn that the registration failed, once for each cause; anomalib goes on.

    Args:
        error: What went wrong.
    """
    cause = f"{type(error).__name__}: {error}"
    if cause in _reported:
        return
    _reported.add(cause)
    import warnings  # noqa: PLC0415  # not loaded at the start of an interpreter

    message = (
        f"anomalib-ccl could not register itself with anomalib, which goes on without it. Cause: {cause}. "
        "`python -c 'from anomalib_ccl import CCL, MultiCategory'` shows where it happened; "
        f"{DISABLE_VARIABLE}=1 switches the plug-in off."
    )
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    except RuntimeWarning:  # where warnings are errors, anomalib goes on all the same
        print(message, file=sys.stderr)


class RegistryLoader(Loader):
    """Loader that calls back when the module has run; in all else the loader it stands for.

    Args:
        loader: The module's own loader, put back on the module before the module runs.
        loaded: Called with the module after it ran without an error.
    """

    def __init__(self, loader: "Loader", loaded: "Callable[[ModuleType], None]") -> None:
        self._loader = loader
        self._loaded = loaded

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        """Create the module as its own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: "ModuleType") -> None:
        """Run the module, and call back."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._loaded(module)


class RegistryFinder:
    """Finder on ``sys.meta_path`` that waits for anomalib's registries and our model, and leaves when it has seen all.

    Example:
        >>> RegistryFinder().find_spec("json") is None
        True
    """

    def __init__(self) -> None:
        self._awaited = {*REGISTRIES, MODEL}

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Find an awaited module as the finders behind this one do, and have its loader call back.

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
                spec.loader = RegistryLoader(spec.loader, self.loaded)
                return spec
        return None

    def loaded(self, module: "ModuleType") -> None:
        """Register our names in the registries that have been imported by now.

        Args:
            module: The module that has just been imported.
        """
        self._awaited.discard(module.__name__)
        if not self._awaited and self in sys.meta_path:
            sys.meta_path.remove(self)
        try:
            import importlib  # noqa: PLC0415  # not loaded at the start of an interpreter

            registry = importlib.import_module("anomalib_ccl.registration.registry")  # heavy
            registry.register(sys.modules["anomalib.models"] if module.__name__ == MODEL else module)
        except Exception as error:  # anomalib must work whatever is wrong here
            report(error)


def install() -> None:
    """Wait for anomalib's registries; those already imported are served at once.

    Does nothing if :func:`disabled`.
    """
    if disabled():
        return
    finder = RegistryFinder()
    sys.meta_path.insert(0, finder)
    for name in (*REGISTRIES, MODEL):
        if name in sys.modules:
            finder.loaded(sys.modules[name])
