"""The heatmap of an image: photograph, map on a fixed scale, and words that say whether the verdict was right."""

import numpy as np
import pytest
import torch
from PIL import ImageColor

from anomalib_ccl.reports.heatmaps import CONTOUR, RIGHT, UNJUDGED, WRONG, coloured, heatmap
from anomalib_ccl.reports.predictions import Prediction

GREY = torch.full((3, 256, 256), 0.5)
RAMP = torch.linspace(0, 1, 256).expand(256, 256)
GAP = 8
ROW = Prediction(product="bottle", score=np.float32(0.78), verdict="anomalous", defective=True)


def draw(row: Prediction = ROW, photograph=GREY, anomaly_map=RAMP, mask=None) -> np.ndarray:
    return np.asarray(heatmap(row, photograph, anomaly_map, mask)).astype(int)


@pytest.mark.parametrize("factor", [0.1, 0.5, 1.0, 3.0])
def test_photograph_and_map_are_side_by_side_and_the_scale_is_the_same_for_all_maps(factor: float) -> None:
    picture = draw(anomaly_map=factor * RAMP)
    assert (picture[:256, :256] == 128).all()
    drawn = picture[:256, 256 + GAP : 512 + GAP]
    np.testing.assert_array_equal(drawn, coloured((factor * RAMP).clamp(max=1).numpy()))


def test_what_is_above_the_limit_is_redder_and_what_is_below_bluer() -> None:
    red, _, blue = coloured(np.linspace(0, 1, 101)).astype(int).T
    assert (red > blue).tolist() == [False] * 50 + [red[50] > blue[50]] + [True] * 50


def test_what_is_brighter_than_white_is_white() -> None:
    assert (draw(photograph=4 * GREY)[:256, :256] == 255).all()


def test_bar_runs_through_the_colours_of_the_map() -> None:
    bar = draw()[:256, 2 * (256 + GAP)]
    np.testing.assert_array_equal(bar[[0, -1]], coloured(np.array([1.0, 0.0])))
    assert (bar == 0).all(axis=-1).nonzero()[0].tolist() == [128]  # the mark of the limit


def test_only_the_contour_of_the_ground_truth_is_drawn_over_the_photograph() -> None:
    mask = torch.zeros(256, 256)
    mask[100:110, 50:51] = 1
    contour = (draw(mask=mask)[:256, :256] == ImageColor.getrgb(CONTOUR)).all(axis=-1)
    expected = np.zeros((256, 256), bool)
    expected[99:111, 49:52] = True
    expected[100:110, 50] = False
    np.testing.assert_array_equal(contour, expected)
    np.testing.assert_array_equal(draw(mask=torch.zeros(256, 256)), draw())


@pytest.mark.parametrize(
    ("verdict", "defective", "colour"),
    [
        ("anomalous", True, RIGHT),
        ("normal", False, RIGHT),
        ("normal", True, WRONG),
        ("anomalous", False, WRONG),
        ("anomalous", None, UNJUDGED),
        (None, True, UNJUDGED),
    ],
)
def test_edge_of_the_words_says_whether_the_verdict_was_right(verdict: str, defective: bool, colour: str) -> None:
    edge = draw(ROW._replace(verdict=verdict, defective=defective))[256:, 0]
    assert {tuple(pixel) for pixel in edge.tolist()} == {ImageColor.getrgb(colour)}


@pytest.mark.parametrize(
    ("size", "height"), [((4, 4), 256), ((8, 16), 128), ((16, 1200), 16), ((1200, 16), 1200), ((448, 640), 448)]
)
@pytest.mark.parametrize("name", ["", "x" * 300, "Weißbier Деталь", "\U0010fffd"])
def test_words_fit_pictures_of_any_shape(size: tuple[int, int], height: int, name: str) -> None:
    row = ROW._replace(category=name, product=None)
    picture = draw(row, torch.rand(3, *size), torch.rand(size))
    assert len(picture) == height + 24
    words = picture[-24:, GAP:]
    assert (words < 100).any()
    assert (words[:, -2:] == 255).all()
    assert not np.array_equal(
        words, draw(row._replace(verdict="normal"), torch.rand(3, *size), torch.rand(size))[-24:, GAP:]
    )
