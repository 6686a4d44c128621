"""Which pixels of a mask file are defective: those that differ from its background.

The background is black, or transparent if any pixel is: a brush of any colour, black too, may be used on a transparent
layer. In JPEG files, which blur, the pixels above half of the brightest are defective.
"""

from collections.abc import Iterable
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.tv_tensors import Mask

from anomalib_ccl.data.reading import cut, file_of, load, orientation_of, turn
from anomalib_ccl.errors import InputError

_BLACK_IN_JPEG = 16


def read_masks(paths: Iterable[str | Path], image_path: str | Path, size: tuple[int, int]) -> Mask:
    """Read the masks of an image, brought to its size (H, W) and joined, as 0 and 1."""
    return Mask(torch.from_numpy(reduce(np.maximum, [_fitted(path, image_path, size) for path in paths])))


def read_mask(path: str | Path) -> NDArray:
    """Read a mask, as 0 and 1."""
    file, view = file_of(path)
    try:
        pixels, orientation = load(file, alpha=True)
        defect = _defect(pixels, lossy=file.lower().endswith((".jpg", ".jpeg")))
        return turn(cut(defect.astype(np.uint8), view), orientation)
    except Exception as error:  # PIL's decoders raise errors of many kinds
        raise InputError(f"cannot read mask {path}: {error}") from error


def _defect(pixels: NDArray, *, lossy: bool) -> NDArray:
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    colour, alpha = np.split(pixels, [-1], axis=-1) if pixels.shape[-1] in {2, 4} else (pixels, np.ones(1))
    brightest = colour.max(axis=-1)
    if lossy:
        return brightest > max(brightest.max() / 2, _BLACK_IN_JPEG)
    drawn = (colour != 0).any(axis=-1)
    seen = np.broadcast_to((alpha > 0)[..., 0], drawn.shape)
    kinds = set(np.unique(drawn[seen]))
    if seen.any() and not seen.all() and len(kinds) == 1:  # a brush on a transparent layer
        return seen
    if seen.any() == seen.all() and (len(kinds) == 2 or (pixels == pixels[0, 0]).all()):  # opaque, or of one value
        return drawn & seen
    raise InputError("its background is not known; draw the defects in white on black, or on a transparent layer")


def _fitted(path: str | Path, image_path: str | Path, size: tuple[int, int]) -> NDArray:
    """Bring a mask to the size of its image, and turn it as that if its size shows that it was painted before."""
    defect = read_mask(path)
    if defect.shape == size:
        return defect.copy()  # upright ones are views of others
    both = defect, turn(defect, orientation_of(image_path))
    defect = min(both, key=lambda mask: abs(mask.shape[0] * size[1] - mask.shape[1] * size[0]))
    (height, width), (rows, columns) = defect.shape, np.nonzero(defect)
    if abs(height * size[1] - width * size[0]) > max(height + width, sum(size)):  # more than rounding makes
        sizes = f"{width} × {height} pixels has other proportions than its image of {size[1]} × {size[0]}"
        raise InputError(f"mask {path} of {sizes}")
    fitted = np.array(Image.fromarray(defect).resize(size[::-1], Image.Resampling.NEAREST))
    if not fitted.any():  # what is smaller than a pixel is not lost
        fitted[rows * size[0] // height, columns * size[1] // width] = 1
    return fitted
