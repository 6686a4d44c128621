"""Files that take the place of others when they are whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copymode
from tempfile import TemporaryDirectory

from anomalib_ccl.errors import InputError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a path to write a file to, and others beside it, which in the end take the place of those beside ``path``.

    They get the permissions of the old ones, and a link leads to the new one.

    Raises:
        InputError: If they cannot be written; the old ones are left as they were.
    """
    path = Path(path)
    try:
        # In the same folder, because only within a file system a file takes another one's place at once.
        with TemporaryDirectory(dir=path.resolve().parent) as folder:
            yield Path(folder) / path.name
            # The weights first: they are the same in the same order, which the old .xml could still read.
            for written in sorted(Path(folder).iterdir()):
                old = path.with_name(written.name).resolve()
                if old.exists():
                    copymode(old, written)
                written.replace(old)
    except (OSError, RuntimeError) as error:  # the latter of libraries, where a disk is full
        reason = getattr(error, "strerror", None) or "the disk may be full"
        msg = f"{path} cannot be written: {reason}; its folder must be writable, with room for a copy of the file"
        raise InputError(msg) from error
