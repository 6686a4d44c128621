"""What is said while one of anomalib's commands runs: what is for the user to the terminal, all of it to a file."""

import atexit
import io
import logging
import logging.handlers
import sys
import sysconfig
import traceback
import warnings
from contextlib import AbstractContextManager, redirect_stdout
from pathlib import Path
from typing import TextIO

from lightning_utilities.core.rank_zero import rank_zero_only
from rich.logging import RichHandler

from anomalib_ccl.plugin.excepthook import input_error

FILE_NAME = "log.txt"

_OURS = str(Path(__file__).parents[1])
_STDLIB = sysconfig.get_path("stdlib")
# Of what libraries say, the little that a user waits for: that Ctrl-C was heard, and why a training ended early.
_TOLD_AS_INFO = ("pytorch/trainer/call.py", "pytorch/callbacks/early_stopping.py", "pytorch/callbacks/timer.py")
# And that a GPU is there but is not used.
_TOLD_AS_WARNING = ("pytorch/trainer/setup.py", "torch/cuda/__init__.py")


def is_library(path: str) -> bool:
    """Tell whether a file belongs to a library: not to this package, and not to the user.

    Args:
        path: Path to a Python file, or what stands for it where code has none.

    Returns:
        True for what is installed or part of Python.

    Example:
        >>> is_library(logging.__file__), is_library(__file__), is_library("train.py")
        (True, False, False)
    """
    if path.startswith(_OURS):
        return False
    return path.startswith((_STDLIB, "<frozen")) or not {"site-packages", "dist-packages"}.isdisjoint(Path(path).parts)


class RunLog:
    """Keeps what is said during a command, from the import of the libraries to the end.

    Before it is known whose run it is, :meth:`hold` keeps warnings back, and :meth:`release` shows them as if nothing
    had been. For a run of ours, :meth:`keep` takes all records of :mod:`logging` and all warnings. They go to a file as
    soon as :meth:`open` says where. The terminal gets those of this package and of the user's own code, errors of
    anybody, and the few lines of libraries that a user waits for; each once, whatever handlers libraries have installed
    for it. :meth:`finish` puts everything back as it was.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self._memory = logging.handlers.MemoryHandler(sys.maxsize, flushLevel=sys.maxsize)
        self._file: logging.FileHandler | None = None
        self._warnings: list[tuple[warnings.WarningMessage, TextIO | None]] = []
        self._unshown = 0
        self._show_warning = warnings.showwarning
        self._call_handlers = logging.Logger.callHandlers

    @property
    def kept(self) -> bool:
        """Whether the run is ours."""
        return logging.Logger.callHandlers is not self._call_handlers

    def hold(self) -> None:
        """Keep warnings back until it is known whose run this is."""
        warnings.showwarning = self._hold_warning
        atexit.register(self.release)

    def release(self) -> None:
        """Show the warnings that were kept back: the run is not ours."""
        self._put_back()
        for warning, file in self._warnings:
            self._show_warning(warning.message, warning.category, warning.filename, warning.lineno, file, warning.line)
        self._warnings.clear()

    def drop(self) -> None:
        """Forget what was said: there will be no run, and the user is told why."""
        self._put_back()
        self._warnings.clear()
        self._memory.buffer.clear()

    def keep(self) -> None:
        """Take all that is said from now on, and what was kept back: the run is ours."""
        log = self

        def call_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
            log._take(logger, record)

        logging.Logger.callHandlers = call_handlers  # type: ignore[method-assign, assignment]
        warnings.showwarning = self._take_warning
        self.write(" ".join(["command:", *sys.argv]))
        for warning, file in self._warnings:
            self._take_warning(warning.message, warning.category, warning.filename, warning.lineno, file, warning.line)
        self._warnings.clear()

    def open(self, folder: Path) -> None:
        """Write to a file in a folder, which gets what was said before too; does nothing once there is a file.

        Args:
            folder: The run's folder, made if it is not there.
        """
        if self.path is not None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE_NAME
        # Commands on a trained model share its folder.
        self._file = logging.FileHandler(self.path, encoding="utf-8")
        self._file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._memory.setTarget(self._file)
        self._memory.flush()

    def write(self, text: str, name: str = "anomalib_ccl", level: int = logging.INFO) -> None:
        """Write something to the file alone.

        Args:
            text: What was said.
            name: Who said it.
            level: How grave it is.
        """
        record = {"name": name, "levelno": level, "levelname": logging.getLevelName(level), "msg": text}
        (self._file or self._memory).handle(logging.makeLogRecord(record))

    def prints(self) -> AbstractContextManager[object]:
        """Have what is printed within a ``with`` block written to the file alone."""
        return redirect_stdout(_Lines(self))

    def close(self) -> None:
        """End the file and put everything back as it was.

        What nobody has read, because there was no file yet, is printed.
        """
        self._put_back()
        if self._file is not None:
            self._file.close()
        else:
            for record in self._memory.buffer:
                print(self._memory.format(record), file=sys.stderr)
        self._memory.buffer.clear()

    def finish(self, folder: Path | None, error: BaseException | None = None) -> None:
        """Close the log of a command that ends, and say where the file is.

        Args:
            folder: The run's folder, if there is one; for what was said before :meth:`open` was called.
            error: What ended the command, if it was not its end.
        """
        if error is not None:
            self.write("".join(traceback.format_exception(error)), level=logging.ERROR)
        if folder is not None and folder.is_dir():
            self.open(folder)
        if self.path is None and error is not None and input_error(error) is not None:
            self.drop()  # its message is all that the user needs
        self.close()
        if self.path is not None and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            unshown = f", with {self._unshown} warnings of theirs" if self._unshown else ""
            print(f"What the libraries said{unshown}: {self.path}")

    def _put_back(self) -> None:
        atexit.unregister(self.release)
        warnings.showwarning = self._show_warning
        logging.Logger.callHandlers = self._call_handlers  # type: ignore[method-assign]

    def _hold_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        warning = warnings.WarningMessage(message, category, filename, lineno, line=line)
        self._warnings.append((warning, file))

    def _take_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = warnings.formatwarning(message, category, filename, lineno, line)
        self.write(text.rstrip(), "py.warnings", logging.WARNING)
        if not is_library(filename):
            self._show_warning(message, category, filename, lineno, file, line)
        elif _posix(filename).endswith(_TOLD_AS_WARNING):
            print(f"warning: {message}", file=sys.stderr)
        else:
            self._unshown += 1

    def _take(self, logger: logging.Logger, record: logging.LogRecord) -> None:
        library = is_library(record.pathname)
        # Who has debugging messages shown has asked for them, as with TORCH_LOGS.
        taken = record.levelno >= logging.INFO
        # The handlers, as logging calls them, except those that write to the terminal for libraries.
        current: logging.Logger | None = logger
        while current is not None:
            for handler in current.handlers:
                muted = taken and (library or current.parent is None) and _on_screen(handler)
                if record.levelno >= handler.level and not muted:
                    handler.handle(record)
            current = current.parent if current.propagate else None
        if taken:
            (self._file or self._memory).handle(record)
            self._show(record, library)

    def _show(self, record: logging.LogRecord, library: bool) -> None:
        if not library or record.levelno >= logging.ERROR or self._is_told(record):
            text = logging.Formatter("%(message)s").format(record).strip()
            if record.levelno < logging.WARNING:
                print(text)
            else:
                print(f"{record.levelname.lower()}: {text}", file=sys.stderr)
        elif record.levelno >= logging.WARNING:
            self._unshown += 1

    @staticmethod
    def _is_told(record: logging.LogRecord) -> bool:
        # Where a function of logging itself is called, as by anomalib after an export, it is to tell where a file is.
        return record.name == "root" or _posix(record.pathname).endswith(_TOLD_AS_INFO)


class _Lines(io.TextIOBase):
    """A stream whose lines go to a log."""

    def __init__(self, log: RunLog) -> None:
        self._log = log
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._log.write(line, "print")
        return len(text)


def _posix(path: str) -> str:
    return path.replace("\\", "/")


def _on_screen(handler: logging.Handler) -> bool:
    streams = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    # torch's handlers are of a class of its own.
    return getattr(handler, "stream", None) in streams or isinstance(handler, RichHandler)


_log: RunLog | None = None


def hold() -> None:
    """Keep warnings back from now on, until it is known whose command runs."""
    global _log  # noqa: PLW0603  # one process runs one command
    _log = RunLog()
    _log.hold()


def held() -> RunLog:
    """Take over the log that keeps warnings back, if there is one.

    Returns:
        That log, or a new one.
    """
    global _log  # noqa: PLW0603
    _log = _log or RunLog()
    return _log


def running() -> RunLog | None:
    """Find the log of the command that runs.

    Returns:
        The log, or None where no command of ours runs, as in a script of the user's.

    Example:
        >>> running() is None
        True
    """
    return _log if _log is not None and _log.kept else None
