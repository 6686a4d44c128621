"""The nearest name, in one short message, for what is misspelt on the command line or in a configuration."""

import difflib
import inspect
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from pydoc import locate
from typing import Any

from anomalib.data import AnomalibDataModule
from anomalib.models.components import AnomalibModule
from jsonargparse import ArgumentParser

from anomalib_ccl.plugin.shipped import shipped_configs

_PACKAGE = "anomalib_ccl"
_OUR_NAMES = re.compile(rf"\b(CCL|MultiCategory|{_PACKAGE})\b", re.IGNORECASE)


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """Find the candidate that a misspelt name most likely means.

    Args:
        name: What was written.
        candidates: What there is.

    Returns:
        The nearest candidate, upper and lower case being one, or None if none is near.

    Example:
        >>> nearest("ccl", ["CCL", "Cfa", "Padim"]), nearest("Foo", ["CCL", "Cfa", "Padim"])
        ('CCL', None)
    """
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return by_lower[matches[0]] if matches else None


def nearest_class(name: str, *bases: type) -> str | None:
    """Find the class that a misspelt class name or class path most likely means.

    Args:
        name: What was written.
        *bases: What it has to be a subclass of; without, a model or a datamodule.

    Returns:
        The name of the nearest subclass that can be made, or None if none is near.

    Example:
        >>> nearest_class("anomalib.models.CLL"), nearest_class("MultiCategry")
        ('CCL', 'MultiCategory')
    """
    found: set[type] = set()
    todo = list(bases or (AnomalibModule, AnomalibDataModule))
    while todo:
        subclasses: list[type] = todo.pop().__subclasses__()
        todo += subclasses
        found.update(subclasses)
    return nearest(name.rpartition(".")[2], sorted(cls.__name__ for cls in found if not inspect.isabstract(cls)))


def mentions_us(words: Sequence[str]) -> bool:
    """Tell whether a command line, or a configuration that it names, speaks of this package.

    Args:
        words: The command line.

    Returns:
        Whether ``CCL``, ``MultiCategory`` or ``anomalib_ccl`` is among its words, in whatever case.

    Example:
        >>> mentions_us(["train", "--model=ccl"]), mentions_us(["train", "--model", "Padim"])
        (True, False)
    """
    files = [Path(word.rpartition("=")[2]) for word in words if word.endswith((".yaml", ".yml", ".json"))]
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file()]
    return any(_OUR_NAMES.search(text) for text in (*words, *texts))


def correction(message: str, parser: ArgumentParser, words: Sequence[str]) -> str | None:
    r"""Put an error of jsonargparse about a misspelt word into one sentence.

    Args:
        message: What jsonargparse says.
        parser: The parser of the subcommand.
        words: The command line.

    Returns:
        The sentence, or None if the error is about something else or the run is not ours.

    Example:
        >>> message = "Problem with given class_path 'anomalib_ccl.CCL':\n  Option 'projecton' is not accepted"
        >>> correction(message, ArgumentParser(), [])
        "CCL has no argument 'projecton'; did you mean 'projection'?"
    """
    if found := re.search(rf"class_path '({_PACKAGE}[\w.]*)':\s+Option '([^']+)' is not accepted", message):
        return _argument(*found.groups())
    if found := re.search(
        rf"class_path '({_PACKAGE}[\w.]*)':\s+Parser key \"(\w+)\":.*?value: ([^\n]*)", message, re.S
    ):
        return _value(*found.groups())
    if found := re.search(r"(?:dot import path string: |no attribute ')([\w.]+)", message):
        ours = mentions_us(words)
        bases = [locate(path) for path in re.findall(r"<class '([\w.]+)'>", message.partition("Errors:")[0])]
        name = nearest_class(found[1], *[base for base in bases if isinstance(base, type) and base is not type(None)])
        if name is not None and (ours or _OUR_NAMES.fullmatch(name)):
            return f"{_key(message)} {found[1]!r} is unknown; did you mean {name!r}?"
        return None
    if found := re.search(r"File does not exist: '([^']+)'", message):
        file = Path(found[1])
        there = [*file.parent.glob("*"), *shipped_configs()]
        near = nearest(file.name, [path.name for path in there])
        ours = mentions_us([*words, *(str(path) for path in there if path.name == near)])
        return f"there is no file {found[1]}; did you mean {near}?" if near and ours else None
    return _option(message, parser) if mentions_us(words) else None


def _key(message: str) -> str:
    found = re.search(r"Parser key \"([\w.]+)\"", message)
    return found[1] if found else "class"


def _argument(class_path: str, name: str) -> str:
    cls: Any = locate(class_path)
    near = nearest(name, inspect.signature(cls).parameters)
    option = "model" if issubclass(cls, AnomalibModule) else "data"
    way_out = f"did you mean {near!r}?" if near else f"--{option}.help={cls.__name__} explains those it has"
    return f"{cls.__name__} has no argument {name!r}; {way_out}"


def _value(class_path: str, name: str, value: str) -> str:
    cls: Any = locate(class_path)
    annotation = inspect.signature(cls).parameters[name].annotation
    expected = inspect.formatannotation(annotation).replace("typing.", "")
    near = nearest(value, re.findall(r"'(\w+)'", expected))
    hint = f"did you mean {near!r}? It" if near else "but"
    return f"{name} of {cls.__name__} is {value!r}, {hint} takes {expected}"


def _option(message: str, parser: ArgumentParser) -> str | None:
    """Correct a subcommand, an option or a key of a configuration."""
    if found := re.search(r"invalid choice: '([^']+)' \(choose from (.*)\)", message):
        kind, name, near = "command", found[1], nearest(found[1], re.findall(r"[\w.]+", found[2]))
    elif found := re.search(r"(?:Unrecognized arguments: |does not accept option ')(?:--)?([\w.]+)", message):
        kind, name, near = "option", found[1], _nearest_option(found[1], parser)
    else:
        return None
    return f"unknown {kind} {name!r}; did you mean {near!r}?" if near else None


def _nearest_option(name: str, parser: ArgumentParser) -> str | None:
    options = {option.lstrip("-") for action in parser._actions for option in action.option_strings}
    group, dot, rest = name.partition(".")
    groups = {option.partition(".")[0] for option in options}
    if group in groups:
        return nearest(name, options)
    near = nearest(group, groups)
    return near and near + dot + rest
