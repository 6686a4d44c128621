"""What the colours of a heatmap mean."""

from functools import cache

import numpy as np
from anomalib.visualization import ImageVisualizer
from anomalib.visualization.image.functional import apply_colormap
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image

_MAP = "anomaly_map"
_DPI = 72  # a pixel is a point


def heatmap_colours() -> ListedColormap:
    """Give matplotlib the colours of anomalib's heatmaps.

    Returns:
        The colour map, from normal to anomalous.

    Example:
        >>> [round(float(part), 1) for part in heatmap_colours()(255)]  # dark red
        [0.5, 0.0, 0.0, 1.0]
    """
    steps = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    return ListedColormap(np.asarray(apply_colormap(steps))[0] / 255)


def add_colour_bar(picture: Image.Image, visualizer: ImageVisualizer) -> Image.Image:
    """Put a colour bar beside the panels of a picture.

    It is marked from 0 to 1, the range of anomalib's normalised maps, in which 0.5 is the threshold; or, where the
    visualizer stretches each map to its own range, with ``low`` and ``high``.

    Args:
        picture: The panels of an image, side by side.
        visualizer: Its settings tell which panels there are.

    Returns:
        The picture, wider by the bar; as it was if no panel shows a map in colours.

    Example:
        >>> add_colour_bar(Image.new("RGB", (768, 256)), ImageVisualizer()).size
        (820, 256)
    """
    overlays = [name for _, names in visualizer.overlay_fields for name in names]
    settings = [visualizer.fields_config.get(_MAP, {})] if _MAP in visualizer.fields else []
    settings += [visualizer.overlay_fields_config.get(_MAP, {})] if _MAP in overlays else []
    coloured = [x for x in settings if x.get("colormap", True)]
    if not coloured:
        return picture
    bar = _bar(picture.height, all(x.get("normalize", False) for x in coloured))
    beside = Image.new("RGB", (picture.width + bar.width, picture.height))
    beside.paste(picture, (0, 0))
    beside.paste(bar, (picture.width, 0))
    return beside


@cache
def _bar(height: int, stretched: bool) -> Image.Image:
    """Draw a bar once for all images."""
    width, letters = max(52, height // 6), max(9, height // 22)
    figure = Figure((width / _DPI, height / _DPI), dpi=_DPI, facecolor="black")
    margin = 0.6 * letters / height
    axes = figure.add_axes((0.12, margin, 0.26, 1 - 2 * margin))
    marks = {0.0: "low", 1.0: "high"} if stretched else {0.0: "0", 0.5: "0.5", 1.0: "1"}
    if height < 4 * letters:
        marks.pop(0.5, None)
    bar = figure.colorbar(ScalarMappable(cmap=heatmap_colours()), cax=axes, ticks=list(marks))
    bar.ax.set_yticklabels(list(marks.values()), color="white", size=letters)
    bar.ax.tick_params(color="white", length=0.3 * letters)
    bar.outline.set_visible(False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
