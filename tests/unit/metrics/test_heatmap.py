"""The heatmap of an image: whole titles, a colour bar, and the verdict."""

import numpy as np
import pytest
import torch
from anomalib.data import ImageItem
from anomalib.visualization import ImageVisualizer
from anomalib.visualization.image.functional import apply_colormap
from PIL import Image

from anomalib_ccl.metrics.heatmaps import ANOMALOUS, NORMAL, heatmap

WORDS = "gravel_coarse, score 0.775, anomalous"


def item(size: tuple[int, int] = (64, 64), anomalous: bool = True) -> ImageItem:
    ramp = torch.linspace(0, 1, size[1]).expand(size)
    mask = ramp > 0.5
    return ImageItem(
        image=torch.full((3, *size), 0.5),
        anomaly_map=ramp,
        pred_mask=mask,
        gt_mask=mask,
        pred_label=torch.tensor(anomalous),
    )


def draw(visualizer: ImageVisualizer, of: ImageItem | None = None, words: str = WORDS) -> Image.Image:
    picture = heatmap(of or item(), words, visualizer)
    assert picture is not None
    return picture


@pytest.mark.parametrize("side", [40, 64, 128, 256, 1024])
@pytest.mark.parametrize("overlays", [["anomaly_map"], ["gt_mask", "pred_mask", "anomaly_map"]])
def test_no_title_reaches_the_edge_of_its_panel(side: int, overlays: list[str]) -> None:
    panels = {"fields": ["image", "gt_mask"], "overlay_fields": [("image", overlays)], "field_size": (side, side)}
    titled = np.asarray(draw(ImageVisualizer(**panels)))[:side, : 3 * side]
    plain = np.asarray(draw(ImageVisualizer(**panels, text_config={"enable": False})))
    edges = [side * number - 2 for number in (1, 2, 3)]
    np.testing.assert_array_equal(titled[:, edges], plain[:, edges])
    if side != 128:  # where nobody could read them there are none
        assert (titled != plain).any() == (side > 128)


def test_size_that_a_user_gave_stays() -> None:
    small, large = (np.asarray(draw(ImageVisualizer(text_config={"size": size}))) for size in (9, 30))
    assert (large[:256, :256] != 127).sum() > 4 * (small[:256, :256] != 127).sum()


@pytest.mark.parametrize("height", [30, 64, 256, 1024])
def test_colour_bar_runs_through_the_colours_of_the_map(height: int) -> None:
    picture = draw(ImageVisualizer(field_size=(256, height)))
    bar = np.asarray(picture)[:height, 4 * 256 :]
    column = bar[:, bar.shape[1] // 4]
    colours = np.asarray(apply_colormap(Image.fromarray(np.arange(256, dtype=np.uint8)[None])))[0]
    coloured = column[column.any(axis=1)]
    assert len(coloured) > height / 3
    np.testing.assert_allclose(coloured[[0, -1]].astype(int), colours[[-1, 0]], atol=20)
    assert (bar.min(axis=-1) > 150).any()  # numbers


def test_without_a_map_in_colours_there_is_no_bar() -> None:
    grey = ImageVisualizer(fields=["image"], overlay_fields=[("image", ["pred_mask"])])
    assert draw(grey).width == 2 * 256
    without = item()
    without.anomaly_map = None
    assert draw(ImageVisualizer(), without).width == 4 * 256


@pytest.mark.parametrize(("anomalous", "colour"), [(True, ANOMALOUS), (False, NORMAL)])
def test_words_have_the_colour_of_the_verdict_at_their_edge(anomalous: bool, colour: str) -> None:
    edge = np.asarray(draw(ImageVisualizer(), item(anomalous=anomalous)))[256:, 0]
    assert {tuple(pixel) for pixel in edge.tolist()} == {tuple(bytes.fromhex(colour[1:]))}


@pytest.mark.parametrize("size", [(4, 4), (16, 1200), (1200, 16)])
def test_image_of_any_shape_is_drawn(size: tuple[int, int]) -> None:
    assert draw(ImageVisualizer(), item(size)).width == draw(ImageVisualizer()).width


def test_a_visualizer_without_text_draws_as_anomalib_does() -> None:
    silent = ImageVisualizer(text_config={"enable": False})
    expected = silent.visualize(item())
    assert isinstance(expected, Image.Image)
    assert draw(silent).tobytes() == expected.tobytes()
