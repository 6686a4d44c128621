"""What goes to the terminal and what to the log, and that nothing is left of it afterwards."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from rich.logging import RichHandler

from anomalib_ccl.plugin.run_log import RunLog

LIBRARY = str(Path(torch.__file__).parent / "onnx/library.py")
USER = "train.py"


@pytest.fixture
def log() -> Iterator[RunLog]:
    log = RunLog()
    log.keep()
    yield log
    log.close()


@pytest.fixture
def screens() -> Iterator[None]:
    """Two handlers of the root logger that write to the terminal, as anomalib's commands have them."""
    root = logging.getLogger()
    handlers = [logging.StreamHandler(sys.stderr), RichHandler()]
    for handler in handlers:
        root.addHandler(handler)
    yield
    for handler in handlers:
        root.removeHandler(handler)


def say(path: str, text: str, level: int = logging.INFO) -> None:
    record = logging.LogRecord("somebody", level, path, 1, text, (), None)
    logging.getLogger("somebody").handle(record)


def warn(path: str, text: str) -> None:
    warnings.showwarning(UserWarning(text), UserWarning, path, 1)


@pytest.mark.usefixtures("screens")
def test_user_and_errors_are_heard_once_and_libraries_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog()
    with warnings.catch_warnings(record=True) as heard:
        log.keep()
        say(LIBRARY, "before the folder")
        log.open(tmp_path / "run")
        say(LIBRARY, "library info")
        say(LIBRARY, "library warning", logging.WARNING)
        say(LIBRARY, "library error", logging.ERROR)
        say(USER, "user info")
        say(USER, "user warning", logging.WARNING)
        warn(LIBRARY, "library warned")
        warn(USER, "user warned")
        with log.prints():
            print("printed")
        log.finish(tmp_path)
    assert [str(warning.message) for warning in heard] == ["user warned"]
    printed = capsys.readouterr()
    path = tmp_path / "run/log.txt"
    assert printed.out == f"user info\nWhat the libraries said, with 2 warnings of theirs: {path}\n"
    assert printed.err == "error: library error\nwarning: user warning\n"
    said = path.read_text(encoding="utf-8")
    for text in ("before the folder", "library info", "library error", "user info", "user warned", "printed"):
        assert said.count(text) == 1


def test_handlers_that_do_not_write_to_the_terminal_hear_all(log: RunLog, tmp_path: Path) -> None:
    handler = logging.FileHandler(tmp_path / "own.txt")
    logging.getLogger().addHandler(handler)
    try:
        say(LIBRARY, "to the user's own file")
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    assert (tmp_path / "own.txt").read_text() == "to the user's own file\n"


def test_nothing_is_lost_without_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog()
    log.keep()
    say(LIBRARY, "before a crash")
    log.close()
    assert "before a crash" in capsys.readouterr().err


def test_crash_before_there_was_a_folder_is_in_the_log(tmp_path: Path) -> None:
    log = RunLog()
    log.keep()
    say(LIBRARY, "before a crash")
    try:
        raise RuntimeError("crash")
    except RuntimeError as error:
        log.finish(tmp_path, error)
    said = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert said.index("before a crash") < said.index("Traceback") < said.index("RuntimeError: crash")


def test_torch_has_handlers_of_its_own_kind_and_is_not_heard_either(
    log: RunLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.open(tmp_path)
    logging.getLogger("torch").handle(logging.LogRecord("torch", logging.WARNING, LIBRARY, 1, "no CUDA", (), None))
    assert capsys.readouterr() == ("", "")
    assert "no CUDA" in (tmp_path / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("end", [RunLog.close, RunLog.release, RunLog.drop])
@pytest.mark.parametrize("begin", [RunLog.hold, RunLog.keep])
def test_all_is_put_back(begin: Callable[[RunLog], None], end: Callable[[RunLog], None]) -> None:
    def state() -> tuple[object, ...]:
        return warnings.showwarning, logging.Logger.callHandlers, tuple(logging.getLogger().handlers), sys.stdout

    before = state()
    log = RunLog()
    begin(log)
    assert state() != before
    end(log)
    assert state() == before


def test_warnings_held_for_a_run_that_is_not_ours_are_shown() -> None:
    log = RunLog()
    log.hold()
    warn(LIBRARY, "deprecated")
    with pytest.warns(UserWarning, match="deprecated"):
        log.release()
