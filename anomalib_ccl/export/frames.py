"""What a camera, a file or another library gives, as the batch of images that an exported model takes."""

import warnings
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from anomalib_ccl.data.reading import PixelRanges, pixels_of, read_image, to_rgb
from anomalib_ccl.errors import InputError

Frame = str | Path | Image.Image | np.ndarray | torch.Tensor

_ACCEPTED = (
    "accepted are grey, RGB and RGBA images: a path, a PIL image, or an array or tensor of shape (H, W), (H, W, C), "
    "(C, H, W), (B, H, W, C) or (B, C, H, W) with 1, 3 or 4 channels C, of uint8, uint16, bool, or floats from 0 to 1"
)
# Not 2: what cameras give in two channels is YUV 4:2:2, whose second is not alpha.
_CHANNELS = {1, 3, 4}
_CAMERA_TYPES = {np.dtype(np.uint8), np.dtype(np.uint16)}
# By how much resizing and other arithmetic on floats may leave the range: a fortieth of a grey level.
_ROUNDING = 1e-4


def to_batch(frame: Frame, ranges: PixelRanges | None = None) -> NDArray[np.float32]:
    """Make a batch of images of whatever holds one image, or of an array that holds several.

    Where the last axis of an array has a length of 1, 3 or 4, it has the channels, so images one pixel wide must have
    theirs last. Grey is expanded, alpha dropped, and what is black and white becomes 0 and 1 by the rule of
    :mod:`anomalib_ccl.data.reading`, as in training; never by what is in the one image, so that a dark one is dark.

    Example:
        >>> grey = np.full((4, 5), 51, np.uint8)
        >>> to_batch(grey).shape, to_batch(grey)[0, :, 0, 0]
        ((1, 3, 4, 5), array([0.2, 0.2, 0.2], dtype=float32))
        >>> to_batch(np.zeros((8, 5, 2), np.uint8))
        Traceback (most recent call last):
        ...
        anomalib_ccl.errors.InputError: array of shape (8, 5, 2) and type uint8 is no image; accepted are grey, ...
    """
    known, turned = ranges or PixelRanges(), ranges is not None
    if isinstance(frame, str | Path):
        batch = _of_file(Path(frame), known, turned)
    else:
        batch = _of_array(*_pixels(frame, turned), known)
    if known.integers and batch.max() > 1 + _ROUNDING:
        # Said once: the text is always the same.
        msg = f"images are brighter than {known.integers[1]:g}, which was white in training; are they of another depth?"
        warnings.warn(msg, stacklevel=2)
    return batch


def _of_file(path: Path, ranges: PixelRanges, turned: bool) -> NDArray[np.float32]:
    """Read a file as it is read in training."""
    if not path.is_file():
        msg = f"there is no image {path}; give the path of one image file"
        raise InputError(msg)
    image = read_image(path, ranges, upright=turned).numpy()
    if ranges == PixelRanges():
        _check_range(image, f"image {path}", ranges.floats)
    return image[None]


def _pixels(frame: Frame, turned: bool) -> tuple[NDArray, str]:
    """Take the pixels out of a PIL image, a tensor or an array, and say what it was."""
    what = type(frame).__name__
    try:
        if isinstance(frame, Image.Image):
            what = f"PIL image of mode {frame.mode} and {frame.height} × {frame.width} pixels"
            # Only where it is needed: the turned copy has no format, which tells the depth of some images.
            if turned and frame.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                frame = ImageOps.exif_transpose(frame)
            return pixels_of(frame), what
        if isinstance(frame, torch.Tensor):
            # numpy has neither bfloat16 nor 8 bits.
            narrow = frame.is_floating_point() and frame.dtype != torch.float64
            frame = (frame.float() if narrow else frame).numpy(force=True)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        msg = f"{what} cannot be read: {shorten(str(error), 200)}; {_ACCEPTED}"
        raise InputError(msg) from error
    # Which value masked pixels have is not known.
    if not isinstance(frame, np.ndarray) or np.ma.isMaskedArray(frame):
        msg = f"{what} is no image; {_ACCEPTED}"
        raise InputError(msg)
    return np.asarray(frame), f"array of shape {frame.shape} and type {frame.dtype}"


def _of_array(pixels: NDArray, what: str, ranges: PixelRanges) -> NDArray[np.float32]:
    """Check an array, and scale it as in training."""
    kind = pixels.dtype.kind
    images = _channels_last(pixels)
    if kind not in "buif" or images is None or not pixels.size:
        fault = "is no image" if pixels.size else "has no pixels"
        msg = f"{what} {fault}; {_ACCEPTED}"
        raise InputError(msg)
    if kind == "f" and ranges.floats == PixelRanges().floats:
        _check_range(pixels, what, ranges.floats)
    elif kind in "iu" and ranges.integers is None and pixels.dtype.newbyteorder("=") not in _CAMERA_TYPES:
        _check_range(pixels, what, (0, 255))
        images = images.astype(np.uint8)
    try:
        return np.stack([to_rgb(image, ranges).transpose(2, 0, 1) for image in images])
    except ValueError as error:
        msg = f"{what} cannot be scaled: {error}"
        raise InputError(msg) from error


def _channels_last(pixels: NDArray) -> NDArray | None:
    """Bring an array into the shape ``(B, H, W, C)``; None if it is neither one image nor a batch of images."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim == 3:
        pixels = pixels[None]
    if pixels.ndim != 4:
        return None
    if pixels.shape[-1] in _CHANNELS:
        return pixels
    return np.moveaxis(pixels, 1, -1) if pixels.shape[1] in _CHANNELS else None


def _check_range(pixels: NDArray, what: str, limits: tuple[float, float]) -> None:
    """Refuse values outside the range of their type, and those that are not finite."""
    low, high = pixels.min(), pixels.max()
    if not (low >= limits[0] - _ROUNDING and high <= limits[1] + _ROUNDING):
        msg = (
            f"{what} has values from {low:g} to {high:g}: floats must lie between 0 and 1, whole numbers other than "
            "uint16 between 0 and 255; divide by what is white, or give uint8 or uint16"
        )
        raise InputError(msg)
