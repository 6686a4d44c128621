"""What an error says that stops a run because its results cannot be written."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Say of an error in writing results where it was, and the way out.

    Args:
        folder: Where results are written.

    Raises:
        OSError: In place of any that is raised inside.

    Example:
        >>> with writing_to(Path("results")):
        ...     Path("/dev/null/predictions.csv").touch()
        Traceback (most recent call last):
        ...
        OSError: results cannot be written to results: Not a directory; free some space, or ...
    """
    try:
        yield
    except OSError as error:
        msg = (
            f"results cannot be written to {folder}: {error.strerror or error}; free some space, or choose another "
            "folder with --default_root_dir"
        )
        raise OSError(msg) from error
