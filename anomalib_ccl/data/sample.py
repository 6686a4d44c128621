"""A small data set of six products, cut from the photographs in the wheel of scikit-image.

They are free: brick, grass, gravel and retina are under CC0, of ihc no copyright restrictions are known, as the
documentation of ``skimage.data`` says.
"""

import json
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from anomalib_ccl.errors import InputError

Box = tuple[int, int, int, int]
# Of the photographs' parts and of the defects; a set of an earlier one is another set.
_EDITION = 2


class Product(NamedTuple):
    """What a category shows: squares of two parts of a photograph; ``other`` gives foreign pieces."""

    photograph: str
    train: Box
    test: Box
    crop: int
    other: str


PRODUCTS = {
    "brick": Product("brick.png", (0, 0, 320, 512), (320, 0, 512, 512), 160, "grass"),
    "grass": Product("grass.png", (0, 0, 320, 512), (320, 0, 512, 512), 160, "brick"),
    # Two look-alikes: the same stones, coarse and fine.
    "gravel_coarse": Product("gravel.png", (0, 0, 320, 512), (320, 0, 512, 512), 104, "brick"),
    "gravel_fine": Product("gravel.png", (0, 0, 320, 512), (320, 0, 512, 512), 180, "brick"),
    "retina": Product("retina.jpg", (212, 212, 1198, 820), (212, 820, 1198, 1198), 300, "tissue"),
    "tissue": Product("ihc.png", (0, 0, 512, 384), (0, 384, 416, 512), 112, "retina"),
}


def make_sample_dataset(
    root: str | Path,
    seed: int = 0,
    *,
    size: int = 256,
    train: int = 48,
    test_good: int = 12,
    per_defect: int = 4,
) -> Path:
    """Make the sample data set, in the layout of MVTec AD.

    Six categories: ``brick``, ``grass``, ``gravel_coarse`` and ``gravel_fine`` are grey, ``retina`` and
    ``tissue`` are coloured; the two gravels are look-alikes, which one model for all categories tends to
    confuse. Training and test images come from parts of the photographs that do not overlap. Each kind of
    defect (a scratch, a stain, a worn place, a piece of another product) comes in several sizes, all of which a
    person sees at a glance, with its exact mask. The same arguments give the same bytes.

    Args:
        root: Folder to make. If it already holds this very set, nothing is done.
        seed: Seed of all crops and defects.
        size: Side of the square images, in pixels.
        train: Normal training images of each category.
        test_good: Normal test images of each category.
        per_defect: Defective test images of each category and kind of defect.

    Returns:
        ``root``.

    Raises:
        InputError: If ``root`` holds anything else than this set.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> root = make_sample_dataset(f"{folder.name}/sample", size=32, train=2, test_good=1, per_defect=1)
        >>> sorted(path.name for path in (root / "brick" / "test").iterdir())
        ['foreign', 'good', 'scratch', 'stain', 'worn']
        >>> folder.cleanup()
    """
    root = Path(root)
    counts = {"train": train, "test_good": test_good, "per_defect": per_defect}
    recipe = {"edition": _EDITION, "seed": seed, "size": size, **counts}
    if root.exists() and (root.is_file() or any(root.iterdir())):
        made_before = root / "sample.json"
        if made_before.exists() and json.loads(made_before.read_text(encoding="utf-8")) == recipe:
            return root
        msg = f"{root} is there and does not hold the sample data set {recipe}; delete it, or name another folder"
        raise InputError(msg)
    for number, name in enumerate(PRODUCTS):
        _make_category(root / name, name, [seed, number], recipe)
    # The recipe comes last, so that an interrupted run does not pass for a set.
    (root / "sample.json").write_text(json.dumps(recipe, indent=2), encoding="utf-8")
    return root


def next_command(root: Path) -> str:
    """Say what to do with the sample data set: the recipe that takes seconds on a laptop."""
    model = "--model CCL --model.recipe memory --model.backbone tf_efficientnet_lite0"
    return f"{root} is ready. Train on it with\n  anomalib train {model} --data MultiCategory --data.root {root}"


def _make_category(folder: Path, name: str, seeds: list[int], recipe: dict[str, int]) -> None:
    product, size = PRODUCTS[name], recipe["size"]
    other = PRODUCTS[product.other]
    for number, (split, count, part) in enumerate(
        (("train", recipe["train"], product.train), ("test", recipe["test_good"], product.test))
    ):
        for index in range(count):
            image = _photograph(product, part, size, np.random.default_rng([*seeds, number, index]))
            _write(folder / split / "good" / f"{index:03}.png", image)
    for number, (kind, paint) in enumerate(DEFECTS.items(), start=2):
        for index in range(recipe["per_defect"]):
            generator = np.random.default_rng([*seeds, number, index])
            image = _photograph(product, product.test, size, generator)
            piece = _photograph(other, other.test, size, generator)
            image, mask = paint(image, piece, (index + 1) / recipe["per_defect"], generator)
            _write(folder / "test" / kind / f"{index:03}.png", image)
            _write(folder / "ground_truth" / kind / f"{index:03}_mask.png", mask[..., None])


def _photograph(product: Product, part: Box, size: int, generator: Generator) -> NDArray:
    """A random square (size, size, C) in [0, 1] from a part of the photograph, as a camera would take it."""
    left, top, right, bottom = part
    crop = product.crop * generator.uniform(0.95, 1.05)
    x, y = generator.uniform(left, right - crop), generator.uniform(top, bottom - crop)
    box = (x, y, x + crop, y + crop)
    square = _read(product.photograph).resize((size, size), Image.Resampling.BICUBIC, box=box)
    image = np.asarray(square, dtype=float).reshape(size, size, -1) / 255
    image = image[:: generator.choice([-1, 1]), :: generator.choice([-1, 1])]
    # Uneven light and sensor noise, so that brightness alone does not give a stain away.
    slope = generator.normal(0, 0.04, 2)
    rows, columns = np.mgrid[:size, :size] / size - 0.5
    light = generator.normal(1, 0.03) + slope[0] * rows + slope[1] * columns
    return np.clip(image * light[..., None] + generator.normal(0, 0.008, image.shape), 0, 1)


@cache
def _read(photograph: str) -> Image.Image:
    with files("skimage.data").joinpath(photograph).open("rb") as file, Image.open(file) as image:
        return image.copy()


def _write(path: Path, image: NDArray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.round(image * 255).astype(np.uint8)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path, compress_level=1)


def _scratch(image: NDArray, other: NDArray, severity: float, generator: Generator) -> tuple[NDArray, NDArray]:
    """A thin bent line, lighter or darker than what it crosses."""
    size = image.shape[0]
    angle = generator.uniform(0, 2 * np.pi)
    length = size * (0.35 + 0.25 * severity)
    along = np.linspace(-0.5, 0.5, 24)
    bend = size * generator.normal(0, 0.03) * np.cos(along * np.pi) + size * generator.normal(0, 0.004, 24)
    direction, normal = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    line = generator.uniform(0.25 * size, 0.75 * size, 2) + np.outer(along * length, direction) + np.outer(bend, normal)
    # Drawn four times larger: PIL's lines have hard edges.
    canvas = Image.new("L", (4 * size, 4 * size))
    width = max(4, round(4 * size * (0.02 + 0.014 * severity)))
    ImageDraw.Draw(canvas).line([(4 * x, 4 * y) for x, y in line], fill=255, width=width, joint="curve")
    alpha = np.asarray(canvas.resize((size, size), Image.Resampling.BOX)) / 255
    # Whichever stands out more: white on dark, black on light.
    contrast = (0.5 + 0.2 * severity) * (1 if image[alpha > 0].mean() < 0.5 else -1)
    return _blend(image, image + contrast, alpha)


def _stain(image: NDArray, other: NDArray, severity: float, generator: Generator) -> tuple[NDArray, NDArray]:
    """A soft spot that darkens or bleaches the surface but leaves its structure."""
    alpha = _blob(image.shape[0], 0.14 + 0.06 * severity, generator, softness=0.4)
    gain = 1 + generator.choice([-1, 1]) * (0.65 + 0.2 * severity)
    return _blend(image, image * gain, alpha)


def _foreign(image: NDArray, other: NDArray, severity: float, generator: Generator) -> tuple[NDArray, NDArray]:
    """A piece of another product, in the brightness of the place where it lies."""
    alpha = _blob(image.shape[0], 0.12 + 0.08 * severity, generator)
    inside = alpha > 0
    return _blend(image, other - other[inside].mean() + image[inside].mean(), alpha)


def _worn(image: NDArray, other: NDArray, severity: float, generator: Generator) -> tuple[NDArray, NDArray]:
    """A place that has lost its fine structure and most of its colour, but not its brightness."""
    sigma = image.shape[0] * (0.025 + 0.02 * severity)
    smooth = gaussian_filter(image, (sigma, sigma, 0), mode="nearest")
    smooth += 0.7 * (smooth.mean(-1, keepdims=True) - smooth)
    loss = np.abs(image - smooth).mean(-1)
    # Where there is little structure, wear would not show.
    spots = [_blob(image.shape[0], 0.12 + 0.08 * severity, generator) for _ in range(8)]
    return _blend(image, smooth, max(spots, key=lambda alpha: (alpha * loss).sum() / alpha.sum()))


#: The kinds of defects by name. Each takes the image and an image of another product (H, W, C), both square
#: and in [0, 1], a severity in [0, 1] and a random generator, and returns the image with the defect, in
#: [0, 1], and its boolean mask (H, W). Outside of the mask the image is as it was.
DEFECTS: dict[str, Callable[[NDArray, NDArray, float, Generator], tuple[NDArray, NDArray]]] = {
    "foreign": _foreign,
    "scratch": _scratch,
    "stain": _stain,
    "worn": _worn,
}


def _blob(size: int, radius: float, generator: Generator, softness: float = 0.15) -> NDArray:
    """The opacity of an irregular round spot, whose edge fades over the part ``softness`` of its radius."""
    x, y = generator.uniform(0.25 * size, 0.75 * size, 2)
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
