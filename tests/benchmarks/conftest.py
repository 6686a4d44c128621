"""Collects the ratios that the benchmarks measure and prints them as one table."""

from collections.abc import Callable, Iterator

import pytest

Row = tuple[str, str, float, float, str]
ROWS = pytest.StashKey[list[Row]]()


@pytest.fixture
def record_ratio(request: pytest.FixtureRequest) -> Callable[[str, str, float, float, str], None]:
    """``record_ratio(what, quantity, ours, reference, unit)``: one row of the table."""

    def record(what: str, quantity: str, ours: float, reference: float, unit: str) -> None:
        request.config.stash.setdefault(ROWS, []).append((what, quantity, ours, reference, unit))

    return record


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> Iterator[None]:
    yield
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    terminalreporter.section("ratios")
    terminalreporter.write_line(f"{'':48} {'quantity':12} {'ours':>10} {'reference':>10}      ratio")
    for what, quantity, ours, reference, unit in rows:
        numbers = f"{ours:10.4g} {reference:10.4g} {unit:4} {ours / reference:6.3f}"
        terminalreporter.write_line(f"{what:48} {quantity:12} {numbers}")
