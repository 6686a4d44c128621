"""Every command on the page of the exports runs as it is typed there: in 16 and 8 bits, and in C++."""

from collections.abc import Callable
from pathlib import Path

from page_commands import folder, printed, run_page  # noqa: F401  # two fixtures
from typed import ROOT


def test_every_command_of_the_page_runs(folder: Path, run: Callable, printed: dict[str, str]) -> None:  # noqa: F811
    run_page(ROOT / "docs/export.md", folder, run, printed)
