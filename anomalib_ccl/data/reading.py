"""How images of any kind become floats: the one rule, for training, prediction and export alike.

Images of 8 bits are divided by 255. Of deeper images, black and white are those of the whole data set, never of the
single image: whole numbers are divided by the smallest of 255, 1023, 4095, 16383 and 65535 that none of its images
exceeds; floats are taken as they are where all lie between 0 and 1, else from the lowest to the highest there is.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2.functional import to_dtype, to_image
from torchvision.tv_tensors import Mask
from tqdm.auto import tqdm

from anomalib_ccl.data.ranges import PixelRanges, Range
from anomalib_ccl.data.views import cut, file_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

# The whites of cameras of 8, 10, 12, 14 and 16 bits, whose frames are all kept in 16; and of 32 bits.
_WHITES = [2**bits - 1 for bits in (8, 10, 12, 14, 16, 32)]
_DEEP_SUFFIXES = (".png", ".tif", ".tiff", ".pgm", ".ppm")
_EXIF_ORIENTATION = 0x0112
# How an image is turned upright, by the orientation that its EXIF data tell.
_UPRIGHT: dict[int, Callable[[NDArray], NDArray]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: np.swapaxes(pixels, 0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(np.swapaxes(pixels, 0, 1), 2),
    8: np.rot90,
}


def to_rgb(image: Image.Image | NDArray, ranges: PixelRanges | None = None) -> NDArray:
    """Make floats in three channels of an image of any kind.

    Grey is expanded, alpha dropped. Nothing is clipped: what is brighter than white becomes more than 1.

    Args:
        image: A PIL image of any mode, or an array of shape ``(H, W)`` or ``(H, W, C)`` with 1 to 4 channels: grey,
            grey and alpha, RGB, RGB and alpha.
        ranges: Black and white of deep images; by default those of their type, which are 0 and 1 for floats.

    Returns:
        Array of shape ``(H, W, 3)`` and type float32, in [0, 1].

    Raises:
        ValueError: If the array has another shape, if its type is none of an image, or if some of its floats are no
            numbers.

    Example:
        >>> frame = np.full((2, 2), 65535, np.uint16)
        >>> to_rgb(frame).max(), to_rgb(frame // 16, PixelRanges(integers=(0, 4095))).max()
        (np.float32(1.0), np.float32(1.0))
        >>> to_rgb(Image.new("RGBA", (3, 2), (255, 0, 51, 7)))[0, 0]
        array([1. , 0. , 0.2], dtype=float32)
    """
    pixels = pixels_of(image) if isinstance(image, Image.Image) else image
    return _scaled(_three_channels(pixels), ranges or PixelRanges())


def pixels_of(image: Image.Image) -> NDArray:
    """Take the pixels out of a PIL image of any mode.

    Returns:
        Array of shape ``(H, W, 3)`` and type uint8; ``(H, W)`` and another type where the image has more than 8 bits.

    Raises:
        ValueError: If PIL cannot convert the mode to RGB.
    """
    if image.mode == "I" and image.format in {"PNG", "PPM"}:
        return np.asarray(image).astype(np.uint16)  # PIL has no other type for them
    return np.array(image if _is_single_and_deep(image) else image.convert("RGB"))


def read_image(path: str | Path, ranges: PixelRanges | None = None, *, upright: bool = True) -> Tensor:
    """Read an image of any kind from a file.

    Args:
        path: The file, or a view in one; see :mod:`anomalib_ccl.data.views`.
        ranges: Black and white of deep images; by default those of their type.
        upright: Whether the image is turned as its EXIF data tell.

    Returns:
        Tensor of shape ``(3, H, W)`` and type float32, in [0, 1].

    Raises:
        OSError: If the file is no image, or not a whole one.
        ValueError: If some of its floats are no numbers.
    """
    pixels, orientation = _load(path)
    if upright:
        pixels = _UPRIGHT.get(orientation, np.asarray)(pixels)
    pixels = _three_channels(pixels)
    if pixels.dtype == np.uint8:
        # As anomalib does, to the last bit.
        return to_dtype(to_image(np.ascontiguousarray(pixels)), torch.float32, scale=True)
    return to_image(_scaled(pixels, ranges or PixelRanges()))


def read_masks(paths: Iterable[str | Path], image_path: str | Path, size: tuple[int, int]) -> Mask:
    """Read the masks of an image.

    Args:
        paths: The files. All pixels but 0 are defective, whatever their value; in JPEG files, which blur, those above
            half of the brightest.
        image_path: The image. A mask that was painted on it before it was turned upright is turned too, which its
            size tells.
        size: Height and width of the image, to which the masks are brought.

    Returns:
        Tensor of shape ``(H, W)`` and type uint8: 1 where any of the masks has a defect, else 0.

    Raises:
        OSError: If a file is no image, or not a whole one.
    """
    return Mask(torch.from_numpy(reduce(np.maximum, [_read_mask(path, image_path, size) for path in paths])))


def is_deep(path: str | Path) -> bool:
    """Tell from the head of a file whether its pixels have more than 8 bits.

    Args:
        path: The file.

    Returns:
        Whether they do; False if it cannot be read.
    """
    path, _ = file_of(path)
    if not _has_suffix(path, *_DEEP_SUFFIXES):
        return False
    try:
        with Image.open(path) as image:
            return _is_deep(image)
    except OSError:
        return _has_suffix(path, ".tif", ".tiff")  # which PIL cannot read where they have several channels of floats


def is_turned(path: str | Path) -> bool:
    """Tell from the head of a file whether its EXIF data say that the image is to be turned.

    Args:
        path: The file, an image that PIL can read.

    Returns:
        Whether they do.
    """
    with Image.open(file_of(path)[0]) as image:
        return image.getexif().get(_EXIF_ORIENTATION, 1) != 1


def find_ranges(paths: Iterable[str | Path]) -> tuple[PixelRanges, int]:
    """Find black and white of the deep images of a data set; only those are read, once.

    Args:
        paths: The images. Those that cannot be read are passed over: reading them later tells why.

    Returns:
        The ranges, by the rule of this module, and how many of the files are deep.
    """
    deep = [path for path in dict.fromkeys(file_of(path)[0] for path in paths) if is_deep(path)]
    extremes: dict[str, list[Range]] = {"integers": [], "floats": []}
    for path in tqdm(deep, "Finding the range of deep images", disable=None if deep else True):
        try:
            pixels = _three_channels(_load(path)[0])
        except (OSError, ValueError):
            continue
        if pixels.dtype != np.uint8 and np.isfinite(pixels).all():
            kind = "floats" if pixels.dtype.kind == "f" else "integers"
            extremes[kind].append((float(pixels.min()), float(pixels.max())))
    return PixelRanges(_integer_range(extremes["integers"]), _float_range(extremes["floats"])), len(deep)


def _integer_range(extremes: list[Range]) -> Range | None:
    if not extremes:
        return None
    low, high = min(low for low, _ in extremes), max(high for _, high in extremes)
    return (0, next(white for white in _WHITES if high <= white)) if low >= 0 else (low, max(high, low + 1))


def _float_range(extremes: list[Range]) -> Range:
    low, high = min((low for low, _ in extremes), default=0), max((high for _, high in extremes), default=1)
    return (0, 1) if low >= 0 and high <= 1 else (low, high if high > low else low + 1)


def _load(path: str | Path) -> tuple[NDArray, int]:
    """The pixels of a file as they lie there, and the EXIF orientation that they still have to be turned by."""
    file, view = file_of(path)
    pixels, orientation = _load_file(file)
    return cut(pixels, view), orientation


def _load_file(path: str) -> tuple[NDArray, int]:
    try:
        with Image.open(path) as image:
            loses_bits = _loses_bits(image)  # asked first: the EXIF data of a PNG file come with all of it
            # PIL turns TIFF images by itself when it reads them.
            orientation = 1 if image.format == "TIFF" else image.getexif().get(_EXIF_ORIENTATION, 1)
            return (_load_channels(path) if loses_bits else pixels_of(image)), orientation
    except Image.UnidentifiedImageError:
        if not _has_suffix(path, ".tif", ".tiff"):
            raise
        return _load_channels(path), 1


def _load_channels(path: str | Path) -> NDArray:
    """Read deep pixels in several channels, which PIL cannot read, or in 8 bits only."""
    with open(path, "rb") as file:  # noqa: PTH123  # one name for str and Path
        pixels = cv2.imdecode(np.frombuffer(file.read() or b"\0", np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        msg = f"cannot identify image file '{path}'"
        raise OSError(msg)
    return pixels[..., [2, 1, 0]] if pixels.shape[2:] in {(3,), (4,)} else pixels  # from BGR


def _is_single_and_deep(image: Image.Image) -> bool:
    return image.mode in {"I", "F"} or image.mode.startswith("I;16")


def _loses_bits(image: Image.Image) -> bool:
    """Whether PIL would make 8 bits of 16, which it does where there are several channels."""
    raw = "".join(str(tile.args) for tile in image.tile)  # type: ignore[attr-defined]
    return not _is_single_and_deep(image) and ";16" in raw


def _is_deep(image: Image.Image) -> bool:
    return _is_single_and_deep(image) or _loses_bits(image)


def _has_suffix(path: str | Path, *suffixes: str) -> bool:
    return str(path).lower().endswith(suffixes)


def _three_channels(pixels: NDArray) -> NDArray:
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    if pixels.ndim not in {2, 3} or not 1 <= channels <= 4:
        msg = f"an array of shape {pixels.shape} is no image; those of shape (H, W) and (H, W, 1 to 4) are"
        raise ValueError(msg)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return np.repeat(pixels[..., :1], 3, axis=-1) if channels <= 2 else pixels[..., :3]


def _scaled(pixels: NDArray, ranges: PixelRanges) -> NDArray:
    black, white = ranges.of(pixels.dtype)
    # Single precision where it is exact, which is several times faster.
    scaled: Any = pixels.astype(np.result_type(pixels.dtype, np.float32))
    scaled -= black
    scaled /= white - black
    if pixels.dtype.kind == "f" and not np.isfinite(scaled).all():
        msg = "some of its pixels are no numbers (NaN or infinite)"
        raise ValueError(msg)
    return scaled.astype(np.float32, copy=False)


def _read_mask(path: str | Path, image_path: str | Path, size: tuple[int, int]) -> NDArray:
    pixels, orientation = _load(path)
    pixels = _three_channels(_UPRIGHT.get(orientation, np.asarray)(pixels)).max(axis=-1)
    defect = (pixels > (pixels.max() / 2 if _has_suffix(path, ".jpg", ".jpeg") else 0)).astype(np.uint8)
    if defect.shape != size:
        with Image.open(file_of(image_path)[0]) as image:
            stored, orientation = image.size[::-1], image.getexif().get(_EXIF_ORIENTATION, 1)
        if stored != size and defect.shape[0] * stored[1] == defect.shape[1] * stored[0]:
            defect = _UPRIGHT.get(orientation, np.asarray)(defect)
        defect = np.asarray(Image.fromarray(defect).resize(size[::-1], Image.Resampling.NEAREST))
    return np.array(defect)
