"""Which values of an image's pixels are black and white."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Range = tuple[float, float]


@dataclass(frozen=True)
class PixelRanges:
    """Which values of deep images are black and white; plain numbers, so that a checkpoint can keep them.

    Args:
        integers: Black and white of images of whole numbers with more than 8 bits. ``None`` is 0 and the largest
            number of their type for 16 bits, 65535, and unknown for more.
        floats: Black and white of images of floats.
    """

    integers: Range | None = None
    floats: Range = (0.0, 1.0)

    def __str__(self) -> str:
        low, high = self.integers or (0, "the largest number of their type")
        return f"whole numbers from {low} to {high} and floats from {self.floats[0]:g} to {self.floats[1]:g}"

    def of(self, dtype: np.dtype) -> Range:
        """Black and white of images of a type.

        Args:
            dtype: The type of their pixels.

        Raises:
            ValueError: If pixels cannot be of that type, or if only ``integers`` could tell what is white in it.
        """
        if dtype.kind == "b":
            return 0, 1
        if dtype.kind == "f":
            return self.floats
        if dtype.kind not in "iu":
            msg = f"pixels of type {dtype} are no image; whole numbers and floats are"
            raise ValueError(msg)
        if dtype.itemsize == 1:
            return 0, int(np.iinfo(dtype).max)
        if self.integers is None and dtype.itemsize > 2:
            msg = f"no image of the training tells what is white in whole numbers of {8 * dtype.itemsize} bits"
            raise ValueError(msg)
        return self.integers or (0, int(np.iinfo(dtype).max))
