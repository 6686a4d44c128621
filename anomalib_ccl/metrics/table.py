"""The report as a table for the terminal."""

import math
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd
from rich.box import SIMPLE
from rich.table import Table

from anomalib_ccl.metrics.category import FIGURES


def report_table(report: pd.DataFrame, others: Mapping[str, float] | None = None) -> Table:
    """Lay out a report, 80 characters wide with category names of up to 20 letters, 14 with the class accuracy.

    Args:
        report: As :func:`~anomalib_ccl.metrics.category.with_mean` returns it.
        others: Figures of the test that no category has, for the line below the table; NaN is left out.

    Returns:
        A table with the number of images and the figures in percent; a dash stands for NaN.

    Example:
        >>> row = {"normal_images": 20, "anomalous_images": 63, **dict.fromkeys(FIGURES, 0.5)}
        >>> row["pixel_AUPRO"] = math.nan
        >>> report = pd.DataFrame([{"category": name, **row} for name in ("bottle", "mean")])
        >>> [next(column.cells) for column in report_table(report).columns]
        ['bottle', '83', '50.0', '50.0', '50.0', '50.0', '50.0', '50.0', '-', '50.0']
        >>> report_table(report, {"image_AUROC": 0.5, "spread_image_AUROC": math.nan}).caption
        'Other figures: image_AUROC 50.0'
    """
    # Most models tell no classes.
    figures = [name for name in FIGURES if name != "class_accuracy" or report[name].notna().any()]
    table = Table(title="Test results per category (%)", box=SIMPLE, pad_edge=False, collapse_padding=True)
    table.add_column("category", overflow="fold")
    for heading in ("images", *figures):
        table.add_column(heading.replace("_", "\n").replace("accuracy", "acc."), justify="right")
    *categories, mean = report.to_dict("records")
    for row in categories:
        table.add_row(*_cells(row, figures))
    table.add_section()
    table.add_row(*_cells(mean, figures))
    known = [f"{name} {100 * value:.1f}" for name, value in (others or {}).items() if not math.isnan(value)]
    if known:
        table.caption = f"Other figures: {', '.join(known)}"
    return table


def _cells(row: dict[Hashable, Any], figures: list[str]) -> list[str]:
    cells = ["-" if math.isnan(row[name]) else f"{100 * row[name]:.1f}" for name in figures]
    return [row["category"], str(row["normal_images"] + row["anomalous_images"]), *cells]
