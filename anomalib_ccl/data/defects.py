"""Defects painted into images, each with its exact mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw
from skimage.filters import gaussian

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def scratch(image: NDArray, other: NDArray, severity: float, generator: np.random.Generator) -> tuple[NDArray, NDArray]:
    """A thin bent line, lighter or darker than what it crosses."""
    size = image.shape[0]
    angle = generator.uniform(0, 2 * np.pi)
    length = size * (0.35 + 0.25 * severity)
    along = np.linspace(-0.5, 0.5, 24)
    bend = size * generator.normal(0, 0.03) * np.cos(along * np.pi) + size * generator.normal(0, 0.004, 24)
    direction, normal = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    line = _centre(size, generator) + np.outer(along * length, direction) + np.outer(bend, normal)
    # Drawn four times larger: PIL's lines have hard edges.
    canvas = Image.new("L", (4 * size, 4 * size))
    width = max(4, round(4 * size * (0.02 + 0.014 * severity)))
    ImageDraw.Draw(canvas).line([(4 * x, 4 * y) for x, y in line], fill=255, width=width, joint="curve")
    alpha = np.asarray(canvas.resize((size, size), Image.Resampling.BOX)) / 255
    # Whichever stands out more: white on dark, black on light.
    contrast = (0.5 + 0.2 * severity) * (1 if image[alpha > 0].mean() < 0.5 else -1)
    return _blend(image, image + contrast, alpha)


def stain(image: NDArray, other: NDArray, severity: float, generator: np.random.Generator) -> tuple[NDArray, NDArray]:
    """A soft spot that darkens or bleaches the surface but leaves its structure."""
    alpha = _blob(image.shape[0], 0.14 + 0.06 * severity, generator, softness=0.4)
    gain = 1 + generator.choice([-1, 1]) * (0.65 + 0.2 * severity)
    return _blend(image, image * gain, alpha)


def foreign(image: NDArray, other: NDArray, severity: float, generator: np.random.Generator) -> tuple[NDArray, NDArray]:
    """A piece of another product, in the brightness of the place where it lies."""
    alpha = _blob(image.shape[0], 0.12 + 0.08 * severity, generator)
    inside = alpha > 0
    return _blend(image, other - other[inside].mean() + image[inside].mean(), alpha)


def worn(image: NDArray, other: NDArray, severity: float, generator: np.random.Generator) -> tuple[NDArray, NDArray]:
    """A place that has lost its fine structure and most of its colour, but not its brightness."""
    smooth = gaussian(image, sigma=image.shape[0] * (0.025 + 0.02 * severity), channel_axis=-1)
    smooth += 0.7 * (smooth.mean(-1, keepdims=True) - smooth)
    loss = np.abs(image - smooth).mean(-1)
    # Where there is little structure, wear would not show.
    spots = [_blob(image.shape[0], 0.12 + 0.08 * severity, generator) for _ in range(8)]
    return _blend(image, smooth, max(spots, key=lambda alpha: (alpha * loss).sum() / alpha.sum()))


#: The kinds of defects by name. Each takes the image and an image of another product (H, W, C), both square
#: and in [0, 1], a severity in [0, 1] and a random generator, and returns the image with the defect, in
#: [0, 1], and its boolean mask (H, W). Outside of the mask the image is as it was.
DEFECTS: dict[str, Callable[[NDArray, NDArray, float, np.random.Generator], tuple[NDArray, NDArray]]] = {
    "foreign": foreign,
    "scratch": scratch,
    "stain": stain,
    "worn": worn,
}


def _centre(size: int, generator: np.random.Generator) -> NDArray:
    return generator.uniform(0.25 * size, 0.75 * size, 2)


def _blob(size: int, radius: float, generator: np.random.Generator, softness: float = 0.15) -> NDArray:
    """The opacity of an irregular round spot, whose edge fades over the part ``softness`` of its radius."""
    x, y = _centre(size, generator)
    rows, columns = np.mgrid[:size, :size] + 0.5
    angle = np.arctan2(rows - y, columns - x)
    edge = np.ones_like(rows)
    for k in (2, 3, 4, 5):
        edge += generator.normal(0, 0.25 / k) * np.cos(k * angle + generator.uniform(0, 2 * np.pi))
    distance = np.hypot(rows - y, columns - x) / (radius * size)
    return np.clip((edge - distance) / softness, 0, 1)


def _blend(image: NDArray, changed: NDArray, alpha: NDArray) -> tuple[NDArray, NDArray]:
    mixed = image + alpha[..., None] * (changed - image)
    return np.clip(mixed, 0, 1), alpha > 0
