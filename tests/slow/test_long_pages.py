"""Every command on the two longest pages runs as it is typed there: trainings; exports in 16 and 8 bits, and C++."""

from collections.abc import Callable
from pathlib import Path

import pytest
from page_commands import LONG, folder, printed, run_page  # noqa: F401  # two fixtures


@pytest.mark.parametrize("page", LONG, ids=lambda page: page.stem)
def test_every_command_of_the_page_runs(page: Path, folder: Path, run: Callable, printed: dict[str, str]) -> None:  # noqa: F811
    run_page(page, folder, run, printed)
