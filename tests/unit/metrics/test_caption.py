"""Words under pictures of any size."""

import numpy as np
import pytest
from anomalib.visualization import ImageVisualizer
from PIL import Image

from anomalib_ccl.metrics.caption import _font_for, add_caption

CONFIG = ImageVisualizer().text_config
TEXT = "gravel_coarse, score 0.775, anomalous"


def strip(picture: Image.Image, text: str = TEXT, **config: object) -> np.ndarray:
    captioned = add_caption(picture, text, {**CONFIG, **config})
    assert captioned.width == picture.width
    assert captioned.crop((0, 0, *picture.size)).tobytes() == picture.tobytes()
    return np.asarray(captioned)[picture.height :]


@pytest.mark.parametrize("size", [(64, 64), (192, 64), (1024, 256), (1024, 1024), (9, 300)])
def test_words_are_legible_and_whole_on_a_picture_of_any_size(size: tuple[int, int]) -> None:
    words = strip(Image.new("RGB", size, "green")).max(axis=-1)
    assert words.max() > 200
    if size[0] >= 64:
        assert not words[:, -2:].any()  # no letter is cut off at the right
        rows = np.flatnonzero((words > 100).any(axis=1))
        lines = np.split(rows, np.flatnonzero(np.diff(rows) > 2) + 1)
        assert all(len(line) >= 7 for line in lines)  # pixels


def test_long_name_takes_as_many_lines_as_it_needs() -> None:
    picture = Image.new("RGB", (128, 64))
    assert len(strip(picture, "x" * 200)) > 5 * len(strip(picture, "x"))


def test_colours_and_size_are_those_of_the_visualizer() -> None:
    words = strip(Image.new("RGB", (256, 64)), color="black", background="white", size=30)
    assert words[0, 0].tolist() == [255, 255, 255]
    assert words.min() == 0
    assert len(words) > 30


@pytest.mark.parametrize("text", ["Weißbier Łódź", "Деталь", "Ωμέγα", "\U0001d586"])
def test_letters_that_some_font_has_stay_as_they_are(text: str) -> None:
    assert _font_for(text, None)[1] == text


def test_letter_that_no_font_has_is_written_as_its_number() -> None:
    assert _font_for("a\U0010fffd", None)[1] == "a\\U0010fffd"


def test_font_that_is_not_there_is_replaced() -> None:
    assert _font_for("bolt", "absent.ttf") == _font_for("bolt", None)
