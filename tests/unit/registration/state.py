"""What the modules of other libraries are made of, for comparison: by name, or as text for another process."""

from __future__ import annotations

import functools
import hashlib
import logging
import re
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

HOSTS = ("anomalib", "lightning", "torch.onnx", "logging", "warnings", "sys")
# What the interpreter and the imports of any library change there.
OF_THE_INTERPRETER = {
    "sys.modules",
    "sys.path_importer_cache",
    "sys.argv",
    "sys.orig_argv",
    "sys.path",
    "sys.last_type",
    "sys.last_value",
    "sys.last_traceback",
    "logging._handlers",
    "logging._handlerList",
}

Name = str


def attributes() -> dict[Name, Any]:
    """Each attribute of each loaded module of the hosts, and each member of their classes."""
    return dict(_attributes())


def _attributes() -> Iterator[tuple[Name, Any]]:
    for name, module in sorted(sys.modules.items()):
        if not isinstance(module, ModuleType) or not any(name == host or name.startswith(f"{host}.") for host in HOSTS):
            continue
        for key, value in list(vars(module).items()):
            path = f"{name}.{key}"
            if isinstance(value, ModuleType) or path in OF_THE_INTERPRETER or key == "__warningregistry__":
                continue
            yield path, value
            if isinstance(value, type) and value.__module__ == name:
                for member, held in list(vars(value).items()):
                    yield f"{path}.{member}", held


def text(value: Any, depth: int = 3) -> str:  # noqa: C901, PLR0911  # a kind in each line
    """Describe a value so that what another library has put in its place reads otherwise."""
    if isinstance(value, str | bytes | int | float | complex | None):
        return repr(value)
    if isinstance(value, CodeType):
        names = repr((value.co_code, value.co_names, value.co_varnames))
        return f"{value.co_filename}:{value.co_firstlineno}:{hashlib.sha256(names.encode()).hexdigest()}"
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()] if depth else []
        return f"{value.__module__}.{value.__qualname__} {text(value.__code__)} {[text(x, depth - 1) for x in cells]}"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, staticmethod | classmethod):
        return f"{type(value).__name__} {text(value.__func__, depth)}"
    if isinstance(value, property):
        return " ".join(text(part, depth) for part in (value.fget, value.fset, value.fdel))
    if isinstance(value, functools.partial):
        return f"partial {text(value.func, depth)} {text(value.args, depth)}"
    if isinstance(value, logging.Logger):
        return f"{value.name} {value.level} {value.disabled} {value.propagate} {text(value.handlers)} {value.filters}"
    if isinstance(value, list | tuple) and depth:
        return f"{type(value).__name__} {[text(part, depth - 1) for part in value]}"
    if isinstance(value, set | frozenset) and depth:
        return f"{type(value).__name__} {sorted(text(part, depth - 1) for part in value)}"
    if isinstance(value, dict) and depth:
        return f"dict {sorted(text(part, depth - 1) for part in value.items())}"
    if isinstance(value, re.Pattern):
        return value.pattern
    return f"{type(value).__module__}.{type(value).__qualname__}"
