"""The page of a test, ``report.html``: its table, the scores of each product, and its worst mistakes."""

from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from anomalib_ccl.reports.heatmaps import coloured
from anomalib_ccl.reports.mistakes import Mistake, Worst, thumbnail
from anomalib_ccl.reports.predictions import KnownImages
from anomalib_ccl.reports.table import figure_rows, headings_of

_TEMPLATES = Environment(
    loader=PackageLoader("anomalib_ccl", "reports"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
# The kinds of images, whether they are defective, the verdict that is wrong of them, its outcome and heading.
_KINDS = (
    ("defective", "True", "normal", "defective, missed", "Missed"),
    ("normal", "False", "anomalous", "false alarm", "False alarms"),
)
_BINS = 50  # an even number, so that none lies on both sides of the threshold 0.5


class Kind(NamedTuple):
    """The normal or the defective images of a product."""

    name: str
    heading: str  # of the wrong ones
    images: int
    judged: int  # of them with a verdict
    wrong: int
    counts: list[int]  # of their scores in the bins of the histogram
    shown: list["Shown"]


class Shown(NamedTuple):
    """A mistake, with the name of its image, and the addresses of image and heatmap."""

    mistake: Mistake
    name: str
    image: str
    heatmap: str | None


def write_page(
    folder: Path,
    model: str,
    report: pd.DataFrame,
    remarks: list[str],
    worst: Worst,
    images: KnownImages,
    heatmaps: Path | None,
) -> Path:
    """Write the page of a test next to its ``predictions.csv``, from which its histograms are.

    The page is one file without scripts, which loads nothing. Its size does not depend on the number of images.

    Args:
        folder: Of the page, and of ``predictions.csv``.
        model: Its name.
        report: The figures of each category and, last, their mean, as in ``categories.csv``.
        remarks: What a reader of the table must know.
        worst: The mistakes to show.
        images: Which know the place of each image's heatmap.
        heatmaps: The folder of those, if they were drawn.

    Returns:
        The path of the page.
    """
    rows = pd.read_csv(folder / "predictions.csv", dtype=str, keep_default_na=False)
    rows[["score", "threshold"]] = rows[["score", "threshold"]].apply(pd.to_numeric)
    edges = np.histogram_bin_edges(np.append(rows["score"].dropna(), (0, 1)), _BINS)
    headings = headings_of(report)
    shown = {
        key: [_shown(mistake, folder.absolute(), images, heatmaps) for mistake in mistakes]
        for key, mistakes in worst.items()
    }
    products = {
        name: [_kind(name, rows[rows["category"] == name], edges, shown, *words) for words in _KINDS]
        for name in report["category"].iloc[:-1]
    }
    text = _TEMPLATES.get_template("report.html.jinja").render(
        model=model,
        headings=[heading.replace("-\n", "").replace("\n", " ") for heading in headings.values()],
        rows=figure_rows(headings, report),
        remarks=remarks,
        products=products,
        low=edges[0],
        high=edges[-1],
        limit=rows["threshold"].max(),
        scored=rows["score"].notna().any(),
        scale=thumbnail(coloured(np.linspace(0, 1, 96)[None].repeat(8, axis=0))),
    )
    path = folder / "report.html"
    path.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")  # there are names that are not UTF-8
    return path


def _kind(
    category: str,
    rows: pd.DataFrame,
    edges: NDArray,
    shown: dict[tuple[str, str], list[Shown]],
    name: str,
    defective: str,
    wrong: str,
    outcome: str,
    heading: str,
) -> Kind:
    """What there is to say of the normal or the defective images of a category."""
    own = rows[rows["defective"] == defective]
    return Kind(
        name,
        heading,
        images=len(own),
        judged=(own["verdict"] != "").sum(),
        wrong=(own["verdict"] == wrong).sum(),
        counts=np.histogram(own["score"].dropna(), edges)[0].tolist(),
        shown=shown.get((category, outcome), []),
    )


def _shown(mistake: Mistake, folder: Path, images: KnownImages, heatmaps: Path | None) -> Shown:
    """Find the files of a mistake."""
    name = mistake.prediction.path or ""
    path, heatmap = Path(name), None if heatmaps is None else heatmaps / images.place(name)
    drawn = _address(heatmap, folder) if heatmap and heatmap.exists() else None
    return Shown(mistake, "/".join(path.parts[-2:]), _address(path, folder), drawn)


def _address(path: Path, folder: Path) -> str:
    """The address of a file, relative to a folder that it lies in, so that the folder can be moved."""
    path = path.absolute()
    if path.is_relative_to(folder):
        return quote(path.relative_to(folder).as_posix(), errors="surrogateescape")
    return path.as_uri()
