"""What the project's pages tell a user to type."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def blocks(page: Path) -> Iterator[str]:
    """The indented blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"(?:^ {4}.*\n|^\n)+", text, re.MULTILINE):
        if block.strip():
            yield "\n".join(line[4:] for line in block.strip("\n").splitlines())
