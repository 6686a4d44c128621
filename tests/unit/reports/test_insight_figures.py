"""The figures and pictures of a calibrated model, on scores small enough to compute by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from anomalib_ccl.reports.insight import Scores, calibration_figures, classes_as_categories
from anomalib_ccl.reports.pictures import embedding_picture, recognition_picture, score_picture

# category, anomalous, recognised, raw score, and in multiples of the limit for 5 %. The gear was not trained on.
ROWS: list[tuple[str, bool, str, float, float]] = [
    ("bolt", False, "bolt", 1.5, 0.5),
    ("bolt", False, "unknown", 1.6, 0.7),
    ("bolt", True, "bolt", 2.5, 0.97),
    ("bolt", True, "nut", 2.6, 1.2),
    ("gear", False, "unknown", 9.0, 9.0),
    ("gear", True, "bolt", 9.0, 9.0),
    ("nut", False, "nut", 4.7, 0.95),
    ("nut", False, "nut", 4.9, 0.97),
    ("nut", True, "nut", 4.8, 0.99),
    ("nut", True, "nut", 6.0, 1.05),
]


def scores(rows: list[tuple[str, bool, str, float, float]] = ROWS) -> Scores:
    images = pd.DataFrame(rows, columns=["category", "anomalous", "recognised", "raw", "calibrated"])
    # With limits for fewer false alarms the calibrated scores are lower.
    images = images.assign(
        calibrated_1=images["calibrated"] - 0.1,
        calibrated_5=images["calibrated"],
        calibrated_10=images["calibrated"] + 0.04,
    )
    return Scores(images, np.eye(len(rows)), np.eye(2, len(rows)), ["bolt", "nut"])


def row(category: str, prefix: str, of: Scores | None = None) -> dict[str, float]:
    """Those figures of a category whose names begin alike."""
    found = calibration_figures(of or scores()).set_index("category").loc[category].filter(regex=f"^{prefix}")
    return {name.removeprefix(prefix): value for name, value in found.items()}


def test_rows_are_the_categories_their_mean_and_all_images_together() -> None:
    table = calibration_figures(scores())
    assert row("nut", "image_AUROC_") == {"raw": 0.75, "calibrated": 1.0}
    assert table["category"].tolist() == ["bolt", "gear", "nut", "mean", "pooled"]
    assert table["normal_images"].tolist() == [2, 1, 2, 4, 4]
    assert table["anomalous_images"].tolist() == [2, 1, 2, 4, 4]


def test_images_recognised_as_their_category_or_rightly_as_unknown_are_right() -> None:
    names = ("bolt", "gear", "nut", "mean", "pooled")
    assert [row(name, "class_accuracy")[""] for name in names] == [0.5, 0.5, 1, 0.75, 0.75]
    assert [row(name, "unknown")[""] for name in names] == [0.25, 0.5, 0, 0.125, 0.125]


def test_alarms_are_above_the_limit_of_each_rate() -> None:
    assert row("nut", "false_alarms_") == {"1": 0.0, "5": 0.0, "10": 0.5}
    assert row("nut", "detected_") == {"1": 0.0, "5": 0.5, "10": 1.0}
    assert row("mean", "detected_") == {"1": 0.25, "5": 0.5, "10": 1.0}


@pytest.mark.parametrize(("anomalous", "lacking"), [(True, "detected_"), (False, "false_alarms_")])
def test_figures_of_images_that_are_not_there_are_nan(anomalous: bool, lacking: str) -> None:
    rest = scores([x for x in ROWS if x[1] != anomalous])
    assert all(math.isnan(x) for name in ("nut", "mean") for x in row(name, lacking, rest).values())
    assert all(math.isnan(x) for x in row("nut", "image_AUROC", rest).values())


def test_pseudo_class_stands_for_the_category_of_most_of_its_images() -> None:
    categories = pd.Series(["bolt", "bolt", "bolt", "nut", "nut", "pin"])
    recognised = pd.Series([0, 0, 1, 1, 1, 3])
    names = [f"pseudo_{k}" for k in range(3)]
    assert classes_as_categories(names, categories, recognised) == ["bolt", "nut", "pseudo_2"]
    assert classes_as_categories(["nut", "gear", "bolt"], categories, recognised) == ["nut", "gear", "bolt"]


def many(categories: int, copies: int) -> Scores:
    """The scores of images of many categories, the last of which was not trained on."""
    generator = np.random.default_rng(0)
    names = [f"product_{k:02}" for k in range(categories)]
    rows = [
        (name, anomalous, name if name != names[-1] else "unknown", *generator.random(2))
        for name in names
        for anomalous in (False, True)
        for _ in range(copies)
    ]
    vectors = np.eye(categories).repeat(2 * copies, axis=0)
    noisy = vectors + 0.01 * generator.standard_normal(vectors.shape)
    return Scores(scores(rows).images, noisy, np.eye(categories)[:-1], names[:-1])


def embedding(of: Scores) -> Figure:
    return embedding_picture(of.images, of.embeddings, of.prototypes, of.classes)


def test_embedding_has_a_number_and_a_name_for_each_category_known_or_not() -> None:
    assert "PCA" in embedding(many(3, 2)).axes[0].get_title()
    figure = embedding(many(15, 3))
    assert sorted((text.get_text() for text in figure.axes[0].texts), key=int) == [str(n) for n in range(1, 16)]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[:2] == ["1  product_00", "2  product_01"]
    stars = [line for line in figure.axes[0].lines if line.get_marker() == "*"]
    assert sum(len(line.get_xdata()) for line in stars) == 14


def test_embedding_of_many_points_keeps_prototypes_in_their_groups_and_says_what_it_does_not_show() -> None:
    (axes,) = embedding(many(4, 20)).axes
    assert "t-SNE" in axes.get_title()
    assert "not how far apart" in axes.get_xlabel()
    groups = [line for line in axes.lines if line.get_marker() == "o"]
    for line in axes.lines:
        if line.get_marker() == "*" and len(line.get_xdata()):
            nearest = min(groups, key=lambda own: np.linalg.norm(own.get_xydata() - line.get_xydata(), axis=1).mean())
            assert nearest.get_color() == line.get_color()


def test_score_panels_count_all_images_and_share_a_threshold_with_as_many_false_alarms() -> None:
    images = many(3, 30).images.assign(calibrated=lambda frame: 1.1 * frame["calibrated"])
    figure = score_picture(images)
    assert len(figure.axes) == 6
    normal = images[~images["anomalous"]]
    limits = [{axes.lines[0].get_xdata()[0] for axes in figure.axes[column::2]} for column in (0, 1)]
    assert limits[1] == {1.0}
    ((raw,),) = limits[:1]
    assert (normal["raw"] > raw).mean() == pytest.approx((normal["calibrated"] > 1).mean(), abs=0.02)
    for axes in figure.axes:
        assert sum(bar.get_height() for bar in axes.patches[:40]) == 30
    for axes in score_picture(images[images["anomalous"]]).axes:
        assert axes.get_title(loc="right").startswith("detected")


def test_long_names_take_several_lines_and_dollars_are_no_formulas() -> None:
    images = many(2, 3).images.replace("product_00", "cost $5 or $6 " + "x" * 50)
    for figure in (score_picture(images), recognition_picture(images)):
        figure.draw_without_rendering()
        labels = [axes.get_ylabel() for axes in figure.axes] + [x.get_text() for x in figure.axes[0].get_yticklabels()]
        assert any(label.startswith("cost \\$5 or \\$6 x") and "\n" in label for label in labels)


def test_recognition_has_a_row_for_each_category_and_a_column_for_unknown() -> None:
    recognised = {"bolt": ["bolt", "bolt", "nut", "unknown"], "gear": ["bolt", "unknown"], "nut": ["nut"]}
    rows = [(name, False, other, 1.0, 1.0) for name, others in recognised.items() for other in others]
    (axes,) = recognition_picture(scores(rows).images).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bolt", "gear", "nut"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["bolt", "gear", "nut", "unknown"]
    np.testing.assert_allclose(axes.images[0].get_array(), [[50, 0, 25, 25], [50, 0, 0, 50], [0, 0, 100, 0]])
    assert [text.get_text() for text in axes.texts] == ["50", "25", "25", "50", "50", "100"]
