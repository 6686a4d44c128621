"""One picture of each image, none in the place of another."""

import io
import logging
from contextlib import suppress
from copy import copy
from itertools import count
from pathlib import Path

from anomalib.data import ImageItem, NumpyImageBatch
from anomalib.utils.path import convert_to_title_case
from anomalib.visualization import ImageVisualizer
from anomalib.visualization.image.functional import dynamic_font_size
from lightning.pytorch import Callback
from PIL import Image, ImageFont

from anomalib_ccl.data.ranges import PixelRanges
from anomalib_ccl.data.reading import is_deep, is_turned, read_image
from anomalib_ccl.data.views import file_of
from anomalib_ccl.metrics.caption import add_caption
from anomalib_ccl.metrics.colour_bar import add_colour_bar
from anomalib_ccl.metrics.full_disk import FULL, writing_to

logger = logging.getLogger(__name__)

# Colours of a verdict, which colour-blind people can tell apart too (Okabe and Ito).
NORMAL, ANOMALOUS = "#009E73", "#D55E00"
_SMALLEST = 8  # pixels, below which nobody can read a title
_BESIDE = 26  # pixels that anomalib leaves free on both sides of a title


class Heatmaps:
    """Draws with anomalib's image visualizers, and writes each picture to a file of its own.

    Of the path of an image, :class:`~anomalib.visualization.ImageVisualizer` keeps the file name and the folder before
    it, so that the pictures of ``line1/good/000.png`` and ``line2/good/000.png`` overwrite each other. Here the place
    of a picture is given. Where a file is in it already, which may be a photograph if the folder is a user's own, the
    picture gets a number behind its name.

    Args:
        visualizers: They keep their settings, ``output_dir`` and ``text_config`` among them.
        folder: Where those without ``output_dir`` write.
    """

    def __init__(self, visualizers: list[ImageVisualizer], folder: Path) -> None:
        self._visualizers = visualizers
        self.folders = [Path(x.output_dir or folder) for x in visualizers]
        self._failed = 0

    def __bool__(self) -> bool:
        """Tell whether there is anything to draw with."""
        return bool(self._visualizers)

    def draw(self, item: ImageItem, place: Path, caption: str, ranges: PixelRanges | None = None) -> None:
        """Draw an image. If that fails, there is a warning, and the run goes on.

        Args:
            item: The image with its predictions.
            place: Where the picture goes, in the folder of each visualizer.
            caption: What is written under it, unless a visualizer is told to write no text.
            ranges: Black and white of the images that the model was trained on, if it was trained by MultiCategory.

        Raises:
            OSError: If there is no room for the picture.
        """
        for visualizer, folder in zip(self._visualizers, self.folders, strict=True):
            try:
                picture = heatmap(_as_read(item, ranges), caption, visualizer)
                if picture is None:
                    continue
                _write(picture, folder / place)
            except Exception as error:
                if isinstance(error, OSError) and error.errno in FULL:
                    with writing_to(folder):
                        raise
                if not self._failed:
                    logger.warning("The heatmap of %s cannot be drawn: %s. The run goes on.", item.image_path, error)
                self._failed += 1

    def close(self) -> None:
        """Say how many pictures could not be drawn, if there are any."""
        if self._failed:
            logger.warning("%d heatmaps could not be drawn.", self._failed)


def heatmap(item: ImageItem | NumpyImageBatch, caption: str, visualizer: ImageVisualizer) -> Image.Image | None:
    """Draw an image with anomalib's visualizer, a colour bar beside it, and words under it.

    Titles are made small enough for their panels. A visualizer that is told to write no text gets no bar and no words.

    Args:
        item: The image with its predictions; a batch has one.
        caption: The words. Their edge has the colour of the verdict.
        visualizer: What it shows, and how.

    Returns:
        The picture; None if there is nothing to show.

    Example:
        >>> import torch
        >>> item = ImageItem(image=torch.rand(3, 64, 64), anomaly_map=torch.rand(64, 64), pred_label=torch.tensor(True))
        >>> heatmap(item, "bottle, score 0.775, anomalous", ImageVisualizer()).size
        (820, 295)
    """
    picture = _with_titles_that_fit(visualizer).visualize(item)
    if not isinstance(picture, Image.Image):
        return None
    if not visualizer.text_config["enable"]:
        return picture
    if item.anomaly_map is not None:
        picture = add_colour_bar(picture, visualizer)
    edge = None if item.pred_label is None else (ANOMALOUS if bool(item.pred_label) else NORMAL)
    return add_caption(picture, caption, visualizer.text_config, edge) if caption else picture


def own_visualizers(callbacks: list[Callback]) -> list[ImageVisualizer]:
    """Find the visualizers that write files as anomalib's does.

    Args:
        callbacks: Those of a Trainer.

    Returns:
        All image visualizers but those whose class does something else with a batch.
    """
    visualizers = [x for x in callbacks if isinstance(x, ImageVisualizer)]
    return [x for x in visualizers if type(x).on_test_batch_end is ImageVisualizer.on_test_batch_end]


def _with_titles_that_fit(visualizer: ImageVisualizer) -> ImageVisualizer:
    """Make the titles so small that each fits its panel, or leave them out; anomalib writes over the edge."""
    text = visualizer.text_config
    if not text["enable"] or text["size"]:
        return visualizer
    titles = [convert_to_title_case(field) for field in visualizer.fields]
    for base, names in visualizer.overlay_fields:
        titles.append(f"{convert_to_title_case(base)} + {'+'.join(map(convert_to_title_case, names))}")
    size = dynamic_font_size(visualizer.field_size)
    try:
        font = ImageFont.truetype(text["font"], size) if text["font"] else ImageFont.load_default(size)
    except OSError:  # of which anomalib warns
        font = ImageFont.load_default(size)
    longest = max(font.getlength(title) for title in titles)
    size = min(size, int(size * (visualizer.field_size[0] - _BESIDE) / longest))
    fitting = copy(visualizer)
    fitting.text_config = {**text, "size": size, "enable": size >= _SMALLEST}
    return fitting


def _as_read(item: ImageItem, ranges: PixelRanges | None) -> ImageItem:
    """Show an image as the model saw it: anomalib's visualizer reads it anew, 16 bits as white, never upright."""
    path, upright = item.image_path, ranges is not None  # and a view it could not read
    if path is None or not (file_of(path)[1] or is_deep(path) or (upright and is_turned(path))):
        return item
    seen = copy(item)
    seen.image = read_image(path, ranges, upright=upright).clamp(0, 1)
    seen.image_path = None
    return seen


def _write(picture: Image.Image, path: Path) -> None:
    """Write a picture to a new file, with a number behind its name if there is one of that name."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        kind, path = "PNG", path.with_name(f"{path.name}.png")
    # As a whole, because PIL does not tell of every kind that the disk is full.
    content = io.BytesIO()
    picture.save(content, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in count():
        free = path if number == 0 else path.with_stem(f"{path.stem}-{number}")
        with suppress(FileExistsError), free.open("xb") as file:
            file.write(content.getbuffer())
            return
