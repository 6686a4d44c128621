"""Images of noise, and masks for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


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
