"""What a camera, a file or another library gives, as the batch of images that an exported model takes."""

import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from anomalib_ccl.data.ranges import PixelRanges
from anomalib_ccl.data.reading import pixels_of, read_image, to_rgb

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
_EXIF_ORIENTATION = 0x0112


def to_batch(frame: Frame, ranges: PixelRanges | None = None) -> NDArray[np.float32]:
    """Make a batch of images of whatever holds one image, or of an array that holds several.

    Grey is expanded, alpha dropped, and what is black and white becomes 0 and 1 by the rule of
    :mod:`anomalib_ccl.data.reading`, as in training; never by what is in the one image, so that a dark one is dark.

    Args:
        frame: The path of an image file, a PIL image of any mode, or an array or tensor. Its last axis has the channels
            if that has 1, 3 or 4 of them; otherwise the axis before height and width has. Colours come as red, green
            and blue; OpenCV has them the other way round. Whole numbers of other types than uint8 and uint16 are taken
            for 8 bits, and must not exceed 255, unless ``ranges`` tells what is white.
        ranges: Black and white of the images that the model was trained on. ``None`` is for models that anomalib's own
            datamodules trained: black and white are those of the type, 0 and 1 for floats, and no image is turned as
            its EXIF data tell.

    Returns:
        Array of shape ``(B, 3, H, W)``, in [0, 1]; beyond that, with a warning for whole numbers, what is brighter than
        the white of ``ranges``, or darker than its black.

    Raises:
        TypeError: If the frame is none of these, or has numbers of another type.
        ValueError: If an array has another shape or no pixels, or if its values are beside their range or no numbers.
        OSError: If a file cannot be read.

    Example:
        >>> grey = np.full((4, 5), 51, np.uint8)
        >>> to_batch(grey).shape, to_batch(grey)[0, :, 0, 0]
        ((1, 3, 4, 5), array([0.2, 0.2, 0.2], dtype=float32))
        >>> to_batch(np.zeros((8, 5, 2), np.uint8))
        Traceback (most recent call last):
        ...
        ValueError: array of shape (8, 5, 2) and type uint8 is no image; accepted are grey, RGB and RGBA images: ...
    """
    batch = _of_anything(frame, ranges or PixelRanges(), turned=ranges is not None)
    if ranges and ranges.integers and batch.max() > 1 + _ROUNDING:
        # Said once: the text is always the same.
        msg = (
            f"images are brighter than {ranges.integers[1]:g}, which was white in training; are they of another depth?"
        )
        warnings.warn(msg, stacklevel=2)
    return batch


def _of_anything(frame: Frame, ranges: PixelRanges, turned: bool) -> NDArray[np.float32]:
    if isinstance(frame, str | Path):
        return _of_file(Path(frame), ranges, turned)
    if isinstance(frame, Image.Image):
        what = f"PIL image of mode {frame.mode} and {frame.height} × {frame.width} pixels"
        return _of_array(_pixels(frame, what, turned), what, ranges)
    if isinstance(frame, torch.Tensor):
        # numpy has no bfloat16.
        frame = (frame.float() if frame.dtype == torch.bfloat16 else frame).detach().cpu().numpy()
    if not isinstance(frame, np.ndarray):
        msg = f"{type(frame).__name__} is no image; {_ACCEPTED}"
        raise TypeError(msg)
    return _of_array(frame, f"array of shape {frame.shape} and type {frame.dtype}", ranges)


def _of_file(path: Path, ranges: PixelRanges, turned: bool) -> NDArray[np.float32]:
    if not path.is_file():
        msg = f"{path} is a folder; give one image at a time" if path.is_dir() else f"there is no image {path}"
        raise FileNotFoundError(msg)
    try:
        image = read_image(path, ranges, upright=turned).numpy()
    except Exception as error:
        msg = f"cannot read image {path}: {error}"
        raise OSError(msg) from error
    if ranges == PixelRanges():
        _check_range(image, f"image {path}", ranges.floats)
    return image[None]


def _pixels(picture: Image.Image, what: str, turned: bool) -> NDArray:
    try:
        if turned and picture.getexif().get(_EXIF_ORIENTATION, 1) != 1:
            picture = ImageOps.exif_transpose(picture)
        return pixels_of(picture)
    except (OSError, ValueError) as error:
        msg = f"{what} cannot be read: {error}; {_ACCEPTED}"
        raise ValueError(msg) from error


def _of_array(pixels: NDArray, what: str, ranges: PixelRanges) -> NDArray[np.float32]:
    kind = pixels.dtype.kind
    if kind not in "buif":
        msg = f"{what} is no image; {_ACCEPTED}"
        raise TypeError(msg)
    images = _channels_last(pixels)
    if images is None or not pixels.size:
        msg = f"{what} {'is no image' if pixels.size else 'has no pixels'}; {_ACCEPTED}"
        raise ValueError(msg)
    if kind == "f" and ranges.floats == PixelRanges().floats:
        _check_range(pixels, what, ranges.floats)
    elif kind in "iu" and ranges.integers is None and pixels.dtype.newbyteorder("=") not in _CAMERA_TYPES:
        _check_range(pixels, what, (0, 255))
        images = images.astype(np.uint8)
    try:
        return np.stack([to_rgb(image, ranges).transpose(2, 0, 1) for image in images])
    except ValueError as error:
        msg = f"{what} cannot be scaled: {error}"
        raise ValueError(msg) from error


def _channels_last(pixels: NDArray) -> NDArray | None:
    """Bring an array into the shape ``(B, H, W, C)``; None if it is neither one image nor a batch of images."""
    if pixels.ndim == 2:
        return pixels[None, ..., None]
    if pixels.ndim == 3:
        pixels = pixels[None]
    if pixels.ndim != 4:
        return None
    if pixels.shape[-1] in _CHANNELS:
        return pixels
    return np.moveaxis(pixels, 1, -1) if pixels.shape[1] in _CHANNELS else None


def _check_range(pixels: NDArray, what: str, limits: tuple[float, float]) -> None:
    """Refuse values beside the range of their type, and those that are no numbers."""
    low, high = pixels.min(), pixels.max()
    if not (low >= limits[0] - _ROUNDING and high <= limits[1] + _ROUNDING):
        msg = (
            f"{what} has values from {low:g} to {high:g}: floats must lie between 0 and 1, whole numbers other than "
            "uint16 between 0 and 255; divide by what is white, or give uint8 or uint16"
        )
        raise ValueError(msg)
