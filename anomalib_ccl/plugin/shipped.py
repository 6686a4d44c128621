"""The configurations that come with the package, found by name from any folder."""

from collections.abc import Iterator, Sequence
from pathlib import Path

# What each option takes.
_FOLDERS = {"--config": ("model", "benchmark"), "--data": ("data",)}


def shipped_configs() -> list[Path]:
    """List the files in ``configs/``: inside an installed package, beside the package in a clone.

    Returns:
        Their paths.

    Example:
        >>> sorted({path.parent.name for path in shipped_configs()})
        ['benchmark', 'data', 'model']
    """
    package = Path(__file__).parents[1]
    root = package if (package / "configs").is_dir() else package.parent
    return sorted(root.glob("configs/*/*.yaml"))


def with_shipped_configs(words: Sequence[str]) -> list[str]:
    """Put the paths of shipped configurations in the place of their names.

    A name is the end of such a path, as ``configs/model/ccl.yaml`` or ``ccl.yaml``; ``--config`` takes it without
    ``.yaml`` too. ``--config`` finds models and benchmarks, ``--data`` data sets. A file that is there under that name
    goes first.

    Args:
        words: A command line.

    Returns:
        The same, with the values of ``--config`` and ``--data`` that name a shipped file replaced by its path.

    Example:
        >>> words = with_shipped_configs(["train", "--config", "ccl_lite0", "--data=sample.yaml", "--model", "CCL"])
        >>> [Path(word).name for word in words]
        ['train', '--config', 'ccl_lite0.yaml', 'sample.yaml', '--model', 'CCL']
    """
    return list(_replaced(words))


def _replaced(words: Sequence[str]) -> Iterator[str]:
    before = ""
    for word in words:
        option, equals, value = word.partition("=")
        if equals and option in _FOLDERS:
            yield f"{option}={_path(option, value)}"
        else:
            yield _path(before, word) if before in _FOLDERS else word
        before = word


def _path(option: str, name: str) -> str:
    wanted = Path(name if name.endswith(".yaml") or option == "--data" else f"{name}.yaml")
    if Path(name).exists() or wanted.suffix != ".yaml" or wanted.is_absolute():
        return name
    for path in shipped_configs():
        if path.parent.name in _FOLDERS[option] and path.parts[-len(wanted.parts) :] == wanted.parts:
            return str(path)
    return name
