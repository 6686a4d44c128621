"""The report of a test as a table, for the terminal and in text, and what is to be said of it."""

import math
from collections.abc import Iterable, Mapping

import pandas as pd
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text
from scipy.stats import binomtest

from anomalib_ccl.metrics.category import FIGURES

# So rarely are as many false alarms chance, that a limit which was exceeded by them is named.
_CHANCE = 0.01


def report_table(report: pd.DataFrame) -> Table:
    """Lay out a report, 80 characters wide with category names of up to 17 letters, 11 with the class accuracy."""
    return figures_table("Test results per category (%)", headings_of(report), report, 1)


def headings_of(report: pd.DataFrame) -> dict[str, str]:
    """The headings of a report's columns, in narrow lines."""
    # Few models recognise classes.
    figures = [name for name in FIGURES if name != "class_accuracy" or report[name].notna().any()]
    return {"images": "im-\nages", **{name: name.replace("_", "\n").replace("accuracy", "acc.") for name in figures}}


def figures_table(
    title: str,
    headings: Mapping[str, str],
    figures: pd.DataFrame,
    summary: int,
    caption: str | None = None,
) -> Table:
    """Lay out figures, the last rows, a summary, apart; ``images`` are those of both kinds."""
    table = Table(title=title, caption=caption, box=SIMPLE, padding=0)
    table.add_column("category", overflow="fold")
    for heading in headings.values():
        table.add_column(heading, justify="right")
    rows = figure_rows(headings, figures)
    for place, row in enumerate(rows, start=1):
        table.add_row(*map(Text, row), end_section=place == len(rows) - summary)  # names are no markup
    return table


def figure_rows(headings: Iterable[str], figures: pd.DataFrame) -> list[list[str]]:
    """Write each category and its figures, in percent, as a table shows them."""
    rows = figures.assign(images=figures["normal_images"] + figures["anomalous_images"]).to_dict("records")
    return [
        [
            row["category"],
            *(
                "-" if math.isnan(row[x]) else str(int(row[x])) if x == "images" else f"{100 * row[x]:.1f}"
                for x in headings
            ),
        ]
        for row in rows
    ]


def remarks(report: pd.DataFrame, false_alarm_rate: float | None = None) -> list[str]:
    """Say what a reader of the table must know."""
    lines, lacking, exceeded = [], [], []
    for row in report.iloc[:-1].to_dict("records"):
        normal = row["normal_images"]
        kinds = {"normal": normal, "defective": row["anomalous_images"]}
        lacking += [f"{row['category']} has no {kind} test image" for kind, count in kinds.items() if not count]
        if false_alarm_rate is not None and normal and not math.isnan(row["false_alarms"]):
            alarms = round(row["false_alarms"] * normal)
            if binomtest(alarms, normal, false_alarm_rate, "greater").pvalue < _CHANCE:
                exceeded.append(f"{row['category']} ({alarms} of {normal} normal images)")
    if lacking:
        lines.append(f'Figures that need both kinds of images are "-": {", ".join(lacking)}.')
    if exceeded:
        asked = f"{100 * (false_alarm_rate or 0):g} %"
        lines.append(f"Clearly more false alarms than the {asked} asked for: {', '.join(exceeded)}.")
    return lines
