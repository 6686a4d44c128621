"""Every command on every page runs as it is typed there; those of the two longest pages in the slow suite."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from page_commands import LONG, PAGES, folder, printed, run_page  # noqa: F401  # two fixtures
from typed import ROOT


@pytest.mark.parametrize("page", [page for page in PAGES if page not in LONG], ids=lambda page: page.stem)
def test_every_command_of_a_page_runs(page: Path, folder: Path, run: Callable, printed: dict[str, str]) -> None:  # noqa: F811
    run_page(page, folder, run, printed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_points_to_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert link.startswith("https://") or (page.parent / link).is_file(), link
    for path in re.findall(
        r"(?<![\w/])(?:configs|examples|tests|docs|anomalib_ccl)/[\w/]+\.(?:py|ya?ml|md|png|cpp)", text
    ):
        assert (ROOT / path).is_file(), path


def test_files_of_the_method_are_there() -> None:
    rows = [
        line for line in (ROOT / "docs/method.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")
    ]
    named = re.findall(r"`((?:model|training|classes)/[\w/]+\.py)`", "\n".join(rows))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / "anomalib_ccl" / name).is_file()] == []


def test_there_are_at_most_eight_pages_and_the_readme_points_to_each() -> None:
    text = PAGES[0].read_text(encoding="utf-8")
    assert len(PAGES) <= 1 + 8
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= set(re.findall(r"\]\(([^)]+)\)", text))
    assert len(text.splitlines()) <= 120


def test_costs_are_the_product_of_steps_and_operations() -> None:
    text = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    (of_step,) = (float(number) for number in re.findall(r"takes ([\d.]+) TFLOP", text))
    rows = re.findall(r"\| [^|]+ \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d.]+) \|", text)
    assert len(rows) == 6
    for row in rows:
        images, steps, peta, hours = (float(cell.replace(",", "")) for cell in row)
        assert steps == -(-images // 16) * 100
        assert peta == pytest.approx(of_step * steps / 1000, abs=0.6)
        assert hours == pytest.approx(of_step * steps / 10 / 3600, abs=0.06)


def test_the_messages_of_the_troubleshooting_are_those_of_the_code() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "anomalib_ccl").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    page = (ROOT / "docs/train.md").read_text(encoding="utf-8").partition("## Troubleshooting")[2]
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 5
    for row in rows:
        for message in re.findall(r"`([^`]+)`", row):
            # What stands between names and values.
            for part in re.split(r"\W*…\W*|'[^']+'", message):
                assert part.strip(" ;?") in source, part
