"""What the commands ``python -m anomalib_ccl.…`` have in common: what they say, and how they end."""

import sys
from collections.abc import Callable
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from anomalib_ccl.plugin import run_log
from anomalib_ccl.plugin.excepthook import explain_bad_input
from anomalib_ccl.plugin.shipped import with_shipped_configs


def run(
    parser: ArgumentParser,
    command: Callable[[Namespace], None],
    folder: Callable[[Namespace], Path | None] = lambda _: None,
) -> None:
    """Read the command line and run a command: bad input ends it in one line, and what libraries say is left out.

    Args:
        parser: Knows the command's arguments.
        command: Does what they ask for.
        folder: Tells where ``log.txt`` goes, with what the libraries have said; without a folder there is none.

    Raises:
        BaseException: What the command raised; a user sees the message alone where the input is to blame.
    """
    explain_bad_input()
    log = run_log.held()
    try:
        arguments = parser.parse_args(with_shipped_configs(sys.argv[1:]))
    except SystemExit:
        log.drop()  # the parser has told the user what is wrong, or helped
        raise
    log.keep()
    try:
        command(parser.instantiate_classes(arguments))
    except BaseException as error:
        log.finish(folder(arguments), error)
        raise
    if folder(arguments) is None:
        log.drop()
    log.finish(folder(arguments))
