"""A page of HTML as a reader sees it: its table, headings and pictures, and where its links lead."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from urllib.parse import urljoin, urlsplit
from urllib.request import url2pathname

from PIL import Image


class ParsedPage(HTMLParser):
    """What is in a page.

    ``tags`` are all tags with their attributes, ``rows`` the cells of the table, ``words`` all text, ``pictures`` the
    decoded thumbnails, with the file that each links to, by alternative text.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.pictures: dict[str, tuple[Image.Image, Path | None]] = {}
        self._link: str | None = None
        self._in_cell = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        if tag == "a":
            self._link = attributes["href"] if not attributes["href"].startswith("#") else None
        elif tag == "tr":
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")
            self._in_cell = True
        elif tag == "img":
            start, _, data = attributes["src"].partition(",")
            assert start == "data:image/jpeg;base64"
            picture = Image.open(BytesIO(base64.b64decode(data, validate=True)))
            picture.load()
            assert picture.format == "JPEG"
            self.pictures[attributes["alt"]] = picture, self.file(self._link) if self._link else None

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            self._link = None
        elif tag in {"td", "th"}:
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.words.append(data.strip())
            if self._in_cell:
                self.rows[-1][-1] += data.strip()

    def file(self, address: str) -> Path:
        """The file that a browser opens."""
        parts = urlsplit(urljoin(self.path.absolute().as_uri(), address))
        assert (parts.scheme, parts.query, parts.fragment) == ("file", "", "")
        return Path(url2pathname(parts.path))
