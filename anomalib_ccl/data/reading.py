"""How images of any kind become floats: the one rule, for training, prediction and export alike.

Images of 8 bits are divided by 255. Black and white of high-bit-depth images are those of all training images, never of
the single image: integers are divided by the smallest of 255, 1023, 4095, 16383 and 65535 that none of these images
exceeds; floats are taken as they are where all lie between 0 and 1, else from the lowest to the highest there is.

A file of MANTA holds five views side by side, each an image of its own. Its path is that of the file as if it were a
folder, with the view in it: ``001.png/view1.png``. Nothing is written there: the files, cut up, would be 690,000.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tifffile import PLANARCONFIG, TiffFile
from torch import Tensor
from torchvision.transforms.v2.functional import to_dtype, to_image
from tqdm.auto import tqdm

from anomalib_ccl.errors import InputError

Range = tuple[float, float]

_VIEWS = {f"view{number}.png": number for number in range(1, 6)}
# The whites of cameras of 8, 10, 12, 14 and 16 bits, whose frames are all kept in 16; and of 32 bits.
_WHITES = [2**bits - 1 for bits in (8, 10, 12, 14, 16, 32)]
_TIFF = (".tif", ".tiff")
_HIGH_BIT_DEPTH = (".png", ".pgm", ".ppm", *_TIFF)
_EXIF_ORIENTATION = 0x0112
_TIFF_BITS = 0x0102
_UPRIGHT: dict[int, Callable[[NDArray], NDArray]] = {  # by EXIF orientation
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: np.swapaxes(pixels, 0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(np.swapaxes(pixels, 0, 1), 2),
    8: np.rot90,
}


@dataclass(frozen=True)
class PixelRanges:
    """Black and white of high-bit-depth images; plain numbers, so that a checkpoint can keep them."""

    integers: Range | None = None
    floats: Range = (0.0, 1.0)

    def __str__(self) -> str:
        low, high = self.integers or (0, "the largest number of their type")
        return f"integers from {low} to {high} and floats from {self.floats[0]:g} to {self.floats[1]:g}"

    def of(self, dtype: np.dtype) -> Range:
        """Give black and white of images of a type; an ``InputError`` if it is none of pixels or white is unknown."""
        if dtype.kind == "b":
            return 0, 1
        if dtype.kind == "f":
            return self.floats
        if dtype.kind not in "iu":
            raise InputError(f"pixels of type {dtype} are no image; integers and floats are")
        if self.integers is None and dtype.itemsize > 2:
            raise InputError(f"no image of the training says what is white in integers of {8 * dtype.itemsize} bits")
        largest = int(np.iinfo(dtype).max)
        return (0, largest) if dtype.itemsize == 1 else self.integers or (0, largest)


def to_rgb(image: Image.Image | NDArray, ranges: PixelRanges | None = None) -> NDArray:
    """Make floats in three channels of an image of any kind: grey is expanded, alpha dropped, nothing clipped."""
    if np.ma.isMaskedArray(image):
        raise InputError("pixels of a masked array may have no value; give them one with its method filled()")
    pixels = pixels_of(image) if isinstance(image, Image.Image) else np.asarray(image)
    return _scaled(_three_channels(pixels), ranges or PixelRanges())


def pixels_of(image: Image.Image) -> NDArray:
    """Take the pixels out of a PIL image of any mode."""
    if image.mode == "I" and image.format in {"PNG", "PPM"}:
        return np.asarray(image).astype(np.uint16)  # PIL has no other type for them
    return np.array(image if _has_high_bits(image) else image.convert("RGB"))


def read_image(path: str | Path, ranges: PixelRanges | None = None, *, upright: bool = True) -> Tensor:
    """Read an image of any kind from a file."""
    try:
        pixels, orientation = load(path)
        if upright:
            pixels = turn(pixels, orientation)
        pixels = _three_channels(pixels)
        if pixels.dtype != np.uint8:
            return to_image(_scaled(pixels, ranges or PixelRanges()))
    except Exception as error:  # PIL's decoders raise errors of many kinds
        raise InputError(f"cannot read image {path}: {error}") from error
    # As anomalib does, to the last bit.
    return to_dtype(to_image(np.ascontiguousarray(pixels)), torch.float32, scale=True)


def view_paths(path: str | Path) -> list[str]:
    """Name the views of a file, from left to right."""
    return [f"{path}/{name}" for name in _VIEWS]


def file_of(path: str | Path) -> tuple[str, int | None]:
    """Find the file that an image is read from, and the number of the view in it; None for a whole file."""
    file, _, name = str(path).rpartition("/")
    return (file, _VIEWS[name]) if name in _VIEWS and Path(file).is_file() else (str(path), None)


def cut(pixels: NDArray, view: int | None) -> NDArray:
    """Cut a view (H, W, …) out of the pixels (H, 5 W, …) of its file."""
    if view is None:
        return pixels
    width, rest = divmod(pixels.shape[1], len(_VIEWS))
    if rest or not width:
        raise InputError(f"its width of {pixels.shape[1]} pixels cannot be split into {len(_VIEWS)} equal views")
    return pixels[:, (view - 1) * width : view * width]


def load(path: str | Path, *, alpha: bool = False) -> tuple[NDArray, int]:
    """Load the pixels of a file or a view as they lie there, with its alpha or without, and their EXIF orientation."""
    file, view = file_of(path)
    try:
        with Image.open(file) as image:
            image.filename = ""  # else PIL maps TIFF files to memory, which scrambles those that it is to turn
            loses_bits = _loses_bits(image)  # asked first: the EXIF data of a PNG file come with all of it
            # PIL turns TIFF images by itself when it reads them.
            orientation = 1 if image.format == "TIFF" else image.getexif().get(_EXIF_ORIENTATION, 1)
            if loses_bits:
                pixels = _load_channels(file)
            elif alpha and image.has_transparency_data:
                pixels = np.array(image.convert("RGBA"))
            else:
                pixels = pixels_of(image)
    except Image.UnidentifiedImageError:
        if not file.lower().endswith(_TIFF):
            raise
        pixels, orientation = _load_channels(file), 1
    return cut(pixels, view), orientation


def turn(pixels: NDArray, orientation: int) -> NDArray:
    """Turn pixels of shape ``(H, W, …)`` upright, as an EXIF orientation says."""
    return _UPRIGHT.get(orientation, np.asarray)(pixels)


def orientation_of(path: str | Path) -> int:
    """Say from the head of an image file which EXIF orientation it has; 1 if it has none or cannot be read."""
    try:
        with Image.open(file_of(path)[0]) as image:
            return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # PIL's decoders raise errors of many kinds
        return 1


def is_high_bit_depth(path: str | Path) -> bool:
    """Say from the head of a file whether its pixels have more than 8 bits; False if it cannot be read."""
    path, _ = file_of(path)
    if not path.lower().endswith(_HIGH_BIT_DEPTH):
        return False
    try:
        with Image.open(path) as image:
            return _has_high_bits(image) or _loses_bits(image)
    except Exception:  # as above
        return path.lower().endswith(_TIFF)  # which PIL cannot read where they have several channels of floats


def find_ranges(paths: Iterable[str | Path]) -> tuple[PixelRanges, int]:
    """Find black and white of the high-bit-depth images of a training, which are read once, and how many there are."""
    files = [path for path in dict.fromkeys(file_of(path)[0] for path in paths) if is_high_bit_depth(path)]
    integers: list[float] = []
    floats: list[float] = []
    for path in tqdm(files, "Finding the range of high-bit-depth images", disable=None if files else True):
        try:
            pixels = _three_channels(load(path)[0])
        except Exception:  # as above
            continue  # reading it later says why
        if pixels.dtype != np.uint8 and np.isfinite(pixels).all():
            extremes = floats if pixels.dtype.kind == "f" else integers
            extremes += float(pixels.min()), float(pixels.max())
    return PixelRanges(_integer_range(integers), _float_range(floats)), len(files)


def _integer_range(values: list[float]) -> Range | None:
    if not values:
        return None
    low, high = min(values), max(values)
    return (0, next(white for white in _WHITES if high <= white)) if low >= 0 else (low, max(high, low + 1))


def _float_range(values: list[float]) -> Range:
    low, high = min(values, default=0), max(values, default=1)
    return (0, 1) if low >= 0 and high <= 1 else (low, high if high > low else low + 1)


def _load_channels(path: str) -> NDArray:
    """Read high-bit-depth pixels in several channels, which PIL cannot read, or in 8 bits only."""
    # imread refuses some letters in paths.
    data = Path(path).read_bytes() or b"\0"
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise OSError(f"cannot identify image file '{path}'")
    if data[:2] in {b"II", b"MM"} and TiffFile(BytesIO(data)).pages.first.planarconfig == PLANARCONFIG.SEPARATE:
        raise InputError("its channels lie in planes, which OpenCV reads wrong; write them pixel by pixel")
    return pixels[..., [2, 1, 0, 3][: pixels.shape[2]]] if pixels.shape[2:] in {(3,), (4,)} else pixels  # from BGR


def _has_high_bits(image: Image.Image) -> bool:
    """Whether PIL reads more than 8 bits, in one channel."""
    return image.mode in {"I", "F"} or image.mode.startswith("I;16")


def _loses_bits(image: Image.Image) -> bool:
    """Whether PIL would make 8 bits of 16, which it does where there are several channels."""
    raw: Any = image.tile[0].args if image.tile else ""  # type: ignore[attr-defined]
    in_ppm = image.format == "PPM" and isinstance(raw, tuple) and raw[1] > 255
    in_tiff = max(getattr(image, "tag_v2", {}).get(_TIFF_BITS, (8,))) > 8
    return not _has_high_bits(image) and (in_ppm or in_tiff or ";16" in str(raw))


def _three_channels(pixels: NDArray) -> NDArray:
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    if pixels.ndim not in {2, 3} or not 1 <= channels <= 4:
        raise InputError(f"an array of shape {pixels.shape} is no image; those of shape (H, W) and (H, W, 1 to 4) are")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return np.repeat(pixels[..., :1], 3, axis=-1) if channels <= 2 else pixels[..., :3]


def _scaled(pixels: NDArray, ranges: PixelRanges) -> NDArray:
    black, white = ranges.of(pixels.dtype)
    # Single precision where it is exact, which is several times faster.
    scaled: NDArray = pixels.astype(np.result_type(pixels.dtype, np.float32))
    scaled -= black
    scaled /= white - black
    if pixels.dtype.kind == "f" and not np.isfinite(scaled).all():
        raise InputError("some of its pixels are no numbers (NaN or infinite)")
    return scaled.astype(np.float32, copy=False)
