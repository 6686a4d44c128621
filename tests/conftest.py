"""Small data sets that the tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
from PIL import Image

from anomalib_ccl.data import make_sample_dataset

# The tests need no hub, and without a connection would wait a minute for each network that asks it for weights: here,
# where the variable has been read already, and in the commands that tests run.
huggingface_hub.constants.HF_HUB_OFFLINE = True
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def sample_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample data set, 64 px and with few images, for reading only.

    In each of the six categories: 6 training images, 2 normal and 4 defective test images.
    """
    root = tmp_path_factory.mktemp("data") / "sample"
    return make_sample_dataset(root, size=64, train=6, test_good=2, per_defect=1)


def write_images(folder: Path, count: int, size: int = 32, suffix: str = ".png", mode: str = "RGB") -> None:
    """Write images ``000.png`` … of noise; those of mode ``L`` are masks with a white square."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        if mode == "L":
            pixels = np.zeros((size, size), np.uint8)
            pixels[4 : 8 + index, 4:8] = 255
        else:
            generator = np.random.default_rng([index, *folder.as_posix().encode()])
            pixels = generator.integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03}{suffix}")


@pytest.fixture(scope="session")
def make_category() -> Callable[..., Path]:
    """``make_category(root, name, train=4, good=2, bad=2, size=32)``: a category in MVTec AD's layout.

    The images are noise, the defect is called ``bad``. Returns the folder of the category.
    """

    def make(root: Path, name: str, train: int = 4, good: int = 2, bad: int = 2, size: int = 32) -> Path:
        folder = Path(root) / name
        write_images(folder / "train" / "good", train, size)
        write_images(folder / "test" / "good", good, size)
        write_images(folder / "test" / "bad", bad, size)
        write_images(folder / "ground_truth" / "bad", bad, size, "_mask.png", "L")
        return folder

    return make


@pytest.fixture
def two_categories(tmp_path: Path, make_category: Callable[..., Path]) -> Path:
    make_category(tmp_path / "set", "bottle")
    make_category(tmp_path / "set", "cable")
    return tmp_path / "set"
