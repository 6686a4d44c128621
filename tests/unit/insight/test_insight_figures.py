"""The figures and tables of a calibrated model, on frames small enough to compute by hand."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from anomalib_ccl.insight import calibration_figures, calibration_tables
from anomalib_ccl.insight.scores import categories_of_pseudo_classes, judge
from anomalib_ccl.model.calibration import ClassCalibration

# subset, category, anomalous, recognised, raw and calibrated score. Training scores of 1 to 5 have their 95 % quantile
# at 4.8 and their 90 % quantile at 4.6; calibrated ones of 0.2 to 1.0 at 0.96 and 0.92. The gear was not trained on.
ROWS: list[tuple[str, str, bool, str, float, float]] = [
    ("train", "bolt", False, "bolt", 1.0, 0.6),
    ("train", "bolt", False, "bolt", 2.0, 1.0),
    ("train", "nut", False, "nut", 3.0, 0.2),
    ("train", "nut", False, "nut", 4.0, 0.4),
    ("train", "nut", False, "nut", 5.0, 0.8),
    ("test", "bolt", False, "bolt", 1.5, 0.5),
    ("test", "bolt", False, "unknown", 1.6, 0.7),
    ("test", "bolt", True, "bolt", 2.5, 0.94),
    ("test", "bolt", True, "nut", 2.6, 1.1),
    ("test", "gear", False, "unknown", 9.0, 9.0),
    ("test", "gear", True, "bolt", 9.0, 9.0),
    ("test", "nut", False, "nut", 4.7, 0.95),
    ("test", "nut", False, "nut", 4.9, 0.97),
    ("test", "nut", True, "nut", 4.8, 0.99),
    ("test", "nut", True, "nut", 6.0, 1.2),
]


def images(rows: list[tuple[str, str, bool, str, float, float]] = ROWS) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["subset", "category", "anomalous", "recognised", "raw", "calibrated"])
    # With limits for fewer false alarms the calibrated scores are lower.
    return frame.assign(
        calibrated_1=frame["calibrated"] - 0.1,
        calibrated_5=frame["calibrated"],
        calibrated_10=frame["calibrated"] + 0.04,
    )


def embeddings(frame: pd.DataFrame) -> np.ndarray:
    """Unit vectors in a direction of each category."""
    return np.eye(8)[frame["category"].astype("category").cat.codes]


def figures(frame: pd.DataFrame, f1_threshold: float = 0.98) -> pd.DataFrame:
    return calibration_figures(frame, embeddings(frame), f1_threshold).set_index("category")


def row(category: str, prefix: str) -> dict[str, float]:
    """Those figures of a category whose names begin alike."""
    found = figures(images()).loc[category].filter(regex=f"^{prefix}")
    return {name.removeprefix(prefix): value for name, value in found.items()}


def test_rows_are_the_categories_and_their_summary() -> None:
    table = figures(images())
    assert list(table.index) == ["bolt", "gear", "nut", "mean", "spread", "pooled"]
    assert list(table["normal_images"])[:4] == [2, 1, 2, 4]
    assert list(table["anomalous_images"])[:4] == [2, 1, 2, 4]


def test_only_images_recognised_as_their_own_category_are_right() -> None:
    assert row("bolt", "class_accuracy_") == {"normal": 0.5, "anomalous": 0.5}
    assert row("nut", "class_accuracy_") == {"normal": 1.0, "anomalous": 1.0}
    assert row("bolt", "unknown_") == {"normal": 0.5, "anomalous": 0.0}


def test_unknown_is_right_for_a_category_that_was_not_trained_on() -> None:
    assert row("gear", "class_accuracy_") == row("gear", "unknown_") == {"normal": 1.0, "anomalous": 0.0}
    assert dict(figures(images())["trained_on"].iloc[:3]) == {"bolt": True, "gear": False, "nut": True}


def test_one_threshold_for_all_is_set_on_the_training_images() -> None:
    assert row("bolt", "false_alarms_raw_") == row("bolt", "false_alarms_calibrated_") == {"5": 0.0, "10": 0.0}
    assert row("bolt", "detected_raw_") == {"5": 0.0, "10": 0.0}
    assert row("bolt", "detected_calibrated_") == {"5": 0.5, "10": 1.0}
    assert row("nut", "false_alarms_raw_") == row("nut", "false_alarms_calibrated_") == {"5": 0.5, "10": 1.0}
    assert row("nut", "detected_raw_") == {"5": 0.5, "10": 1.0}


def test_own_limits_are_at_one() -> None:
    assert row("nut", "false_alarms_limit_") == {"1": 0.0, "5": 0.0, "10": 0.5}
    assert row("nut", "detected_limit_") == {"1": 0.5, "5": 0.5, "10": 1.0}


def test_auroc_counts_pairs_in_the_right_order() -> None:
    assert row("nut", "image_AUROC_") == {"raw": 0.75, "calibrated": 1.0}
    test = images().query("subset == 'test' and category != 'gear'")
    for score in ("raw", "calibrated"):
        pairs = [a > n for a in test.loc[test["anomalous"], score] for n in test.loc[~test["anomalous"], score]]
        assert row("pooled", "image_AUROC_")[score] == pytest.approx(np.mean(pairs))


def test_f1_is_taken_at_anomalibs_threshold() -> None:
    assert row("bolt", "image_F1") == {"": pytest.approx(2 / 3)}
    assert row("nut", "image_F1") == {"": 1.0}
    assert figures(images(), math.nan)["image_F1"].isna().all()


def test_summary_leaves_out_what_was_not_trained_on() -> None:
    assert row("mean", "class_accuracy_") == {"normal": 0.75, "anomalous": 0.75}
    assert row("spread", "false_alarms_raw_") == {"5": 0.5, "10": 1.0}
    assert all(math.isnan(value) for value in row("spread", "detected_").values())
    assert row("pooled", "detected_calibrated_") == {"5": 0.75, "10": 1.0}
    assert row("pooled", "V_measure") == {"": 1.0}


def test_v_measure_falls_where_categories_share_their_place() -> None:
    frame = images()
    mixed = np.eye(8)[[0, 1] * 7 + [0]]
    assert calibration_figures(frame, mixed, 1.0)["V_measure"].iloc[-1] < 0.1


@pytest.mark.parametrize(
    ("anomalous", "figure", "cells"),
    [
        (True, "detected", ["2", "0", "100.0", "-", "0.0", "-"]),
        (False, "false_alarms", ["0", "2", "-", "100.0", "-", "0.0"]),
    ],
)
def test_figures_of_images_that_are_not_there_are_dashes(anomalous: bool, figure: str, cells: list[str]) -> None:
    table = figures(images([x for x in ROWS if x[0] == "train" or x[2] != anomalous]))
    assert table.filter(like=figure).isna().all(axis=None)
    assert table.filter(like="AUROC").isna().all(axis=None)
    assert next(line.split()[1:] for line in printed(table) if line.split()[:1] == ["nut"]) == cells


def printed(table: pd.DataFrame) -> list[str]:
    """The lines of the tables in a terminal of 80 characters."""
    console = Console(width=80)
    with console.capture() as capture:
        for part in calibration_tables(table.reset_index()):
            console.print(part)
    return capture.get().splitlines()


def test_tables_fit_80_characters_and_show_percent() -> None:
    long = "a_category_of_20_let"
    lines = printed(figures(images().replace({"nut": long})))
    assert sum(line.split()[:1] == [long] for line in lines) == 3
    own, threshold, limits = (line.split()[1:] for line in lines if line.split()[:1] == [long])
    assert own == ["2", "2", "100.0", "100.0", "0.0", "0.0"]
    assert threshold == ["50.0", "50.0", "50.0", "100.0", "100.0", "100.0", "100.0", "100.0"]
    assert limits == ["75.0", "100.0", "100.0", "0.0", "50.0", "0.0", "50.0", "50.0", "100.0"]


def test_tables_mark_what_was_not_trained_on() -> None:
    lines = printed(figures(images()))
    assert sum(line.split()[:2] == ["gear", "*"] for line in lines) == 3
    assert any(line.strip().startswith("* not trained on") for line in lines)
    assert not any("*" in line for line in printed(figures(images([x for x in ROWS if x[1] != "gear"]))))


def test_pseudo_class_stands_for_the_category_of_most_of_its_images() -> None:
    categories = np.array(["bolt", "bolt", "bolt", "nut", "nut", "pin", "pin", "pin"])
    unknown = 3
    recognised = np.array([0, 0, 1, 1, 1, unknown, unknown, 2])
    names = [f"pseudo_{k}" for k in range(3)]
    assert categories_of_pseudo_classes(names, categories, recognised) == ["bolt", "nut", "pseudo_2"]


def fitted() -> tuple[ClassCalibration, torch.Tensor]:
    """A calibration of two classes in orthogonal directions, and its limits at 1, 5 and 10 % of false alarms."""
    calibration = ClassCalibration(0.2)
    scores = torch.cat([torch.linspace(1, 2, 50), torch.linspace(4, 9, 50)])
    calibration.fit(torch.eye(2, 4).repeat_interleave(50, 0), scores, torch.arange(2).repeat_interleave(50))
    z = [torch.distributions.Normal(0, 1).icdf(torch.tensor(1 - rate)) for rate in (0.01, 0.05, 0.1)]
    return calibration, torch.stack([calibration.location + x * calibration.scale for x in z])


def samples(categories: list[str]) -> pd.DataFrame:
    """Two training images and a normal and a defective test image of each of two categories, in turns."""
    frame = pd.DataFrame({"category": categories * 4, "label_index": [0] * 6 + [1] * 2})
    return frame.set_axis(pd.MultiIndex.from_product([["train", "test"], range(4)]))


def test_scores_are_calibrated_at_the_models_own_rate_and_at_others() -> None:
    calibration, limits = fitted()
    embedding, score = torch.eye(2, 4).repeat(4, 1), torch.arange(1.0, 9)[:, None]
    scores = judge(samples(["bolt", "nut"]), embedding, score, calibration, ["bolt", "nut"], False, 1.0)
    own = calibration(embedding, score[..., None, None], score).score.flatten()
    np.testing.assert_array_equal(scores.images["calibrated"], own.numpy())
    for rate, limit in zip((1, 5, 10), limits, strict=True):
        expected = score.flatten() / limit.repeat(4)
        np.testing.assert_allclose(scores.images[f"calibrated_{rate}"], expected.numpy(), rtol=1e-5)
    assert calibration.false_alarm_rate == 0.2


def test_training_images_of_categories_not_trained_on_are_left_out() -> None:
    calibration, _ = fitted()
    embedding = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0]]).repeat(4, 1)
    scores = judge(samples(["bolt", "gear"]), embedding, torch.ones(8, 1), calibration, ["bolt", "nut"], False, 1.0)
    assert scores.images.query("subset == 'train'")["category"].tolist() == ["bolt", "bolt"]
    assert scores.images.query("subset == 'test'")["recognised"].tolist() == ["bolt", "unknown"] * 2
    assert len(scores.embeddings) == len(scores.images) == 6


def test_categories_of_another_model_are_refused() -> None:
    calibration, _ = fitted()
    expected = "trained on bolt, nut, but on none of the datamodule's categories: gear, pin"
    with pytest.raises(ValueError, match=expected):
        judge(samples(["pin", "gear"]), torch.ones(8, 4), torch.ones(8, 1), calibration, ["bolt", "nut"], False, 1.0)
