"""The figures of calibration as tables for the terminal."""

import math
from collections.abc import Hashable, Iterable
from typing import Any

import pandas as pd
from rich.box import SIMPLE
from rich.table import Table

from anomalib_ccl.insight.figures import LIMIT_RATES, SCORES, THRESHOLD_RATES, at_rate

_PARTS = {"normal": "normal", "anomalous": "defect"}
_STAGES = dict(zip(SCORES, ("before", "after"), strict=True))
_ALARMS = {"false_alarms": "false", "detected": "found"}

# The columns of each table, with their headings.
_PRODUCT = {
    **{f"{part}_images": f"images\n{short}" for part, short in _PARTS.items()},
    **{f"class_accuracy_{part}": f"right\n{short}" for part, short in _PARTS.items()},
    **{f"unknown_{part}": f"unknown\n{short}" for part, short in _PARTS.items()},
}
_THRESHOLD = {
    f"{kind}_{at_rate(score, rate)}": f"{rate:.0%}\n{short}\n{stage}"
    for rate in THRESHOLD_RATES
    for kind, short in _ALARMS.items()
    for score, stage in _STAGES.items()
}
_RANKING = {
    **{f"image_AUROC_{score}": f"image\nAUROC\n{stage}" for score, stage in _STAGES.items()},
    "image_F1": "image\nF1",
}
_LIMITS = {
    f"{kind}_{at_rate('limit', rate)}": f"{rate:.0%}\n{short}"
    for rate in LIMIT_RATES
    for kind, short in _ALARMS.items()
}


def calibration_tables(figures: pd.DataFrame) -> list[Table]:
    """Lay out the figures in three tables, each 80 characters wide with category names of up to 20 letters.

    Args:
        figures: As :func:`~anomalib_ccl.insight.calibration_figures` returns them.

    Returns:
        The product that is recognised in each image; one threshold for all; ranking, and the model's own limits.
        All in percent but the numbers of images; a dash stands for NaN, a star for a category that the model was not
        trained on.

    Example:
        >>> figures = pd.DataFrame(columns=[*_PRODUCT, *_THRESHOLD, *_RANKING, *_LIMITS], index=range(4), dtype=float)
        >>> figures["category"] = ["bolt", "mean", "spread", "pooled"]
        >>> figures = figures.assign(trained_on=True, V_measure=1.0, detected_raw_5=0.5)
        >>> [next(column.cells) for column in calibration_tables(figures)[1].columns]
        ['bolt', '-', '-', '50.0', '-', '-', '-', '-', '-']
    """
    note = f"V-measure of the embedding: {figures['V_measure'].iloc[-1]:.3f}"
    if not figures["trained_on"].all():
        note += "\n* not trained on: right if unknown, not in the rows below"
    legend = "false: alarms among normal images; found: among defective ones"
    return [
        _table("Recognition of the product (%)", note, figures, _PRODUCT),
        _table("One threshold, which 5 or 10 % of the training images exceed (%)", legend, figures, _THRESHOLD),
        _table("Ranking; alarms at the model's own limits (%)", legend, figures, _RANKING | _LIMITS),
    ]


def _table(title: str, caption: str, figures: pd.DataFrame, headings: dict[str, str]) -> Table:
    table = Table(title=title, caption=caption, box=SIMPLE, padding=0)
    table.add_column("category", overflow="fold")
    for heading in headings.values():
        table.add_column(heading, justify="right")
    for category in figures.iloc[:-3].to_dict("records"):
        star = "" if category["trained_on"] else " *"
        table.add_row(f"{category['category']}{star}", *_cells(category, headings))
    table.add_section()
    # The spread is that of the false-alarm rates, which not every table has.
    for summary in figures.iloc[-3:].dropna(how="all", subset=list(headings)).to_dict("records"):
        table.add_row(summary["category"], *_cells(summary, headings))
    return table


def _cells(row: dict[Hashable, Any], columns: Iterable[str]) -> list[str]:
    return ["-" if math.isnan(row[x]) else f"{row[x]:.0f}" if "images" in x else f"{100 * row[x]:.1f}" for x in columns]
