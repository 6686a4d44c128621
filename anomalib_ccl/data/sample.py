"""A small data set of six products, cut from the photographs in the wheel of scikit-image.

They are free: brick, grass, gravel and retina are under CC0, of ihc no copyright restrictions are known, as the
documentation of ``skimage.data`` says.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from anomalib_ccl.data.defects import DEFECTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

Box = tuple[int, int, int, int]
# Of the photographs' parts and of the defects; a set of an earlier one is another set.
_EDITION = 2


class Product(NamedTuple):
    """What a category shows.

    Attributes:
        photograph: File in ``skimage/data``.
        train: Part of the photograph for the training images: left, top, right, bottom, in pixels.
        test: Part for the test images; it does not overlap with ``train``.
        crop: Side of the squares cut from the photograph, in pixels.
        other: The category that gives the foreign pieces.
    """

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
        FileExistsError: If ``root`` holds anything else than this set.

    Example:
        >>> folder = tempfile.TemporaryDirectory()
        >>> root = make_sample_dataset(f"{folder.name}/sample", size=32, train=2, test_good=1, per_defect=1)
        >>> sorted(path.name for path in (root / "brick" / "test").iterdir())
        ['foreign', 'good', 'scratch', 'stain', 'worn']
        >>> folder.cleanup()
    """
    root = Path(root)
    recipe = {
        "edition": _EDITION,
        "seed": seed,
        "size": size,
        "train": train,
        "test_good": test_good,
        "per_defect": per_defect,
    }
    if root.exists() and any(root.iterdir()):
        made_before = root / "sample.json"
        if made_before.exists() and json.loads(made_before.read_text(encoding="utf-8")) == recipe:
            return root
        msg = f"{root} is not empty and does not hold the sample data set {recipe}; delete it, or name another folder"
        raise FileExistsError(msg)
    root.mkdir(parents=True, exist_ok=True)
    # Made aside and moved, the recipe last, so that an interrupted run does not pass for a set.
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        for number, name in enumerate(PRODUCTS):
            _make_category(Path(folder) / name, name, [seed, number], recipe)
        for name in PRODUCTS:
            shutil.move(Path(folder) / name, root / name)
    (root / "sample.json").write_text(json.dumps(recipe, indent=2), encoding="utf-8")
    return root


def _make_category(folder: Path, name: str, seeds: list[int], recipe: dict[str, int]) -> None:
    product, size = PRODUCTS[name], recipe["size"]
    other = PRODUCTS[product.other]
    for index in range(recipe["train"]):
        generator = np.random.default_rng([*seeds, 0, index])
        image = _photograph(product, product.train, size, generator)
        _write(folder / "train" / "good" / f"{index:03}.png", image)
    for index in range(recipe["test_good"]):
        generator = np.random.default_rng([*seeds, 1, index])
        image = _photograph(product, product.test, size, generator)
        _write(folder / "test" / "good" / f"{index:03}.png", image)
    for number, (kind, paint) in enumerate(DEFECTS.items()):
        for index in range(recipe["per_defect"]):
            generator = np.random.default_rng([*seeds, 2 + number, index])
            image = _photograph(product, product.test, size, generator)
            piece = _photograph(other, other.test, size, generator)
            image, mask = paint(image, piece, (index + 1) / recipe["per_defect"], generator)
            _write(folder / "test" / kind / f"{index:03}.png", image)
            _write(folder / "ground_truth" / kind / f"{index:03}_mask.png", mask[..., None])


def _photograph(product: Product, part: Box, size: int, generator: np.random.Generator) -> NDArray:
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
