"""Words under a picture, in any letters, on a picture of any size."""

from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.font_manager import fontManager
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

_SMALLEST = 13  # pixels, below which letters are hard to read
_DEJAVU = str(Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))  # Latin, Greek, Cyrillic, Hebrew, Arabic


def add_caption(picture: Image.Image, text: str, config: dict[str, Any], edge: str | None = None) -> Image.Image:
    r"""Put words in a strip under a picture; on a narrow one they take several lines.

    Args:
        picture: The picture.
        text: The words. A letter that no font on this computer has is written as its number: ``\u7269``.
        config: ``text_config`` of :class:`~anomalib.visualization.ImageVisualizer`: its ``font`` and ``size``, where
            they are given, and its ``color`` and ``background``.
        edge: Colour of a bar at the left edge of the strip, if there is to be one.

    Returns:
        The picture with the strip, as wide as before.

    Example:
        >>> config = {"font": None, "size": None, "color": "white", "background": (0, 0, 0, 128)}
        >>> add_caption(Image.new("RGB", (768, 256)), "bottle, score 0.775, anomalous", config).width
        768
    """
    size = config["size"] or max(_SMALLEST, min(picture.height // 12, picture.width // 24))
    path, text = _font_for(text, config["font"])
    font = ImageFont.truetype(path, size)
    margin = size // 3
    left = margin if edge is None else 2 * margin
    lines = _wrapped(text, font, picture.width - left - margin)
    line_height = sum(font.getmetrics())
    strip = Image.new("RGBA", (picture.width, line_height * len(lines) + 2 * margin), "black")
    if config["background"] is not None:
        strip.alpha_composite(Image.new("RGBA", strip.size, config["background"]))
    draw = ImageDraw.Draw(strip)
    if edge is not None:
        draw.rectangle((0, 0, margin - 1, strip.height), fill=edge)
    for number, line in enumerate(lines):
        draw.text((left, margin + number * line_height), line, font=font, fill=config["color"])
    captioned = Image.new("RGB", (picture.width, picture.height + strip.height))
    captioned.paste(picture, (0, 0))
    captioned.paste(strip, (0, picture.height))
    return captioned


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Break a text into lines of a width at most: at spaces, or within a word that is wider."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


@cache
def _font_for(text: str, wanted: str | None) -> tuple[str, str]:
    """A font that has all letters of a text, and the text; with numbers for letters that none has."""
    letters = set(text)
    fallback = _path(wanted) or _DEJAVU
    if missing := _missing(fallback, letters):
        # Matplotlib's Last Resort has a box with a code for everything.
        others = (x.fname for x in fontManager.ttflist if x.style == "normal" and "Last Resort" not in x.name)
        for path in (_DEJAVU, *others):
            if not _missing(path, letters):
                return path, text
    return fallback, "".join(x.encode("ascii", "backslashreplace").decode() if x in missing else x for x in text)


def _path(font: str | None) -> str | None:
    """The file of a font that a user has named, which PIL looks for among the system's."""
    try:
        return None if font is None else str(ImageFont.truetype(font).path)
    except OSError:
        return None  # anomalib warns of it


def _missing(path: str, letters: set[str]) -> set[str]:
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):  # a font that matplotlib remembers, but that is gone or broken
        return letters
    return {letter for letter in letters if not font.get_char_index(ord(letter))}
