"""The pictures of a calibrated model show what is in its scores."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from anomalib_ccl.insight import Scores, confusion_picture, embedding_picture, score_picture

COLUMNS = ["subset", "category", "anomalous", "recognised", "raw", "calibrated"]


def many(categories: int, copies: int) -> Scores:
    """The scores of images of many categories, the last of which was not trained on."""
    generator = np.random.default_rng(0)
    names = [f"product_{k:02}" for k in range(categories)]
    rows = [
        (subset, name, anomalous, name if name != names[-1] else "unknown", *generator.random(2))
        for name in names
        for subset, anomalous in (("train", False), ("test", False), ("test", True))
        for _ in range(copies)
        if (subset, name) != ("train", names[-1])
    ]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    vectors = np.eye(categories)[frame["category"].astype("category").cat.codes]
    noisy = vectors + 0.01 * generator.standard_normal(vectors.shape)
    return Scores(frame, noisy, np.eye(categories)[:-1], names[:-1], 1.0)


def texts(figure: Figure) -> list[str]:
    figure.draw_without_rendering()
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_embedding_has_a_number_and_a_name_for_each_category_seen_or_not() -> None:
    figure = embedding_picture(many(15, 3))
    assert sorted(texts(figure), key=int) == [str(number) for number in range(1, 16)]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[:15] == [f"{number}  product_{number - 1:02}" for number in range(1, 16)]
    stars = [line for line in figure.axes[0].lines if line.get_marker() == "*"]
    assert sum(len(line.get_xdata()) for line in stars) == 14


def test_embedding_of_many_points_keeps_clusters_apart_and_prototypes_in_them() -> None:
    (axes,) = embedding_picture(many(4, 20)).axes
    assert "t-SNE" in axes.get_title()
    for line in axes.lines:
        if line.get_marker() == "*" and len(line.get_xdata()):
            place = line.get_xydata()
            distance = {
                other.get_color(): np.linalg.norm(other.get_xydata() - place, axis=1).mean()
                for other in axes.lines
                if other.get_marker() == "o"
            }
            assert min(distance, key=distance.__getitem__) == line.get_color()


def test_embedding_of_few_points_is_drawn_by_pca() -> None:
    assert "PCA" in embedding_picture(many(3, 2)).axes[0].get_title()


def test_scores_share_axis_and_threshold() -> None:
    scores = many(3, 30)
    figure = score_picture(scores.images)
    assert len(figure.axes) == 6
    train = scores.images.query("subset == 'train'")
    for column, score in enumerate(("raw", "calibrated")):
        panels = figure.axes[column::2]
        assert {axes.get_xlim() for axes in panels} == {panels[0].get_xlim()}
        for axes in panels:
            (line,) = axes.lines
            assert line.get_xdata()[0] == pytest.approx(np.quantile(train[score], 0.95))
    test = scores.images.query("subset == 'test' and category == 'product_00'")
    share = 100 * (test.loc[test["anomalous"], "raw"] > np.quantile(train["raw"], 0.95)).mean()
    assert f"detected {share:.1f} %" in figure.axes[0].get_title(loc="right")


def test_scores_are_counted_and_say_before_and_after_at_the_top() -> None:
    images = many(3, 30).images
    figure = score_picture(images)
    figure.draw_without_rendering()
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "before calibration",
        "after calibration",
        *[""] * 4,
    ]
    assert figure.get_supylabel() == "number of images"
    for axes in figure.axes:
        normal, defective = (sum(bar.get_height() for bar in axes.patches[:40]), axes.patches[-1].get_xy()[:, 1].max())
        assert normal == 30
        assert defective == int(defective) >= 1
        low, high = axes.get_ylim()
        ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
        assert len(ticks) >= 2
        assert all(tick == int(tick) for tick in ticks)


def test_long_names_take_several_lines_and_dollars_are_no_formulas() -> None:
    scores = many(2, 3)
    scores.images["category"] = scores.images["category"].replace("product_00", "cost $5 or $6 " + "x" * 50)
    for figure in (score_picture(scores.images), confusion_picture(scores.images)):
        figure.draw_without_rendering()
        labels = [axes.get_ylabel() for axes in figure.axes] + [x.get_text() for x in figure.axes[0].get_yticklabels()]
        assert any(label.startswith("cost \\$5 or \\$6 x") and "\n" in label for label in labels)


def test_scores_are_drawn_without_normal_images() -> None:
    images = many(3, 30).images
    figure = score_picture(images[(images["subset"] == "train") | images["anomalous"]])
    assert all(axes.get_title(loc="right").startswith("detected") for axes in figure.axes)


def test_confusion_has_a_row_for_each_category_and_a_column_for_unknown() -> None:
    recognised = {"bolt": ["bolt", "bolt", "nut", "unknown"], "gear": ["bolt", "unknown"], "nut": ["nut"]}
    rows = [("test", name, False, other, 1.0, 1.0) for name, others in recognised.items() for other in others]
    figure = confusion_picture(pd.DataFrame([*rows, ("train", "nut", False, "bolt", 1.0, 1.0)], columns=COLUMNS))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bolt", "gear", "nut"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["bolt", "gear", "nut", "unknown"]
    np.testing.assert_allclose(axes.images[0].get_array(), [[50, 0, 25, 25], [50, 0, 0, 50], [0, 0, 100, 0]])
    assert texts(figure) == ["50", "25", "25", "50", "50", "100"]
