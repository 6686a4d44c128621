"""The table of a test fits a terminal, and its remarks name what a reader must know."""

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy.stats import binom

from anomalib_ccl.metrics.category import FIGURES
from anomalib_ccl.reports.table import remarks, report_table


def printed(report: pd.DataFrame) -> list[list[str]]:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(report_table(report))
    return [line.split() for line in capture.get().splitlines()]


@pytest.mark.parametrize(("name", "accuracy", "cells"), [("coar[/red]", 1.0, 10), ("MVTecAD2/fruit_je", np.nan, 9)])
def test_table_fits_80_characters(name: str, accuracy: float, cells: int) -> None:
    row = {"normal_images": 600, "anomalous_images": 1200, **dict.fromkeys(FIGURES, 1.0), "class_accuracy": accuracy}
    lines = printed(pd.DataFrame([{"category": name, **row}, {"category": "mean", **row}]))
    assert [name, "1800", *["100.0"] * cells] in lines
    assert ["mean", "1800", *["100.0"] * cells] in lines


def report(*rows: tuple[str, int, int, float]) -> pd.DataFrame:
    columns = ["category", "normal_images", "anomalous_images", "false_alarms"]
    return pd.DataFrame([*rows, ("mean", 0, 0, 0.5)], columns=columns)


def test_there_is_nothing_to_remark_of_a_whole_test_within_its_limits() -> None:
    assert remarks(report(("bolt", 100, 10, 0.02), ("nut", 20, 3, 0.05)), 0.01) == []
    assert remarks(report(("bolt", 100, 10, 0.9)), None) == []  # no rate was asked for


@pytest.mark.parametrize("rate", [0.01, 0.05])
@pytest.mark.parametrize("normal", [5, 20, 100])
def test_products_are_named_from_as_many_false_alarms_on_as_are_hardly_chance(rate: float, normal: int) -> None:
    named = [bool(remarks(report(("bolt", normal, 1, alarms / normal)), rate)) for alarms in range(normal + 1)]
    chance = [binom.sf(alarms - 1, normal, rate) for alarms in range(normal + 1)]
    assert named == [p < 0.01 for p in chance]
    assert any(named)
    assert not named[0]


def test_products_without_normal_or_without_defective_images_are_named() -> None:
    (line,) = remarks(report(("bolt", 0, 3, np.nan), ("gear", 2, 0, 0.0), ("nut", 2, 2, 0.0)), 0.01)
    assert "bolt has no normal" in line
    assert "gear has no defective" in line
    assert "nut" not in line
