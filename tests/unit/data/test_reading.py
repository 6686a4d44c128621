"""Images of every kind, read right."""

import cv2
import numpy as np
import pytest
import tifffile
import torch
from anomalib.data.utils import read_image as anomalib_read_image
from PIL import Image, ImageOps

from anomalib_ccl.data.reading import (
    PixelRanges,
    find_ranges,
    is_high_bit_depth,
    orientation_of,
    read_image,
    to_rgb,
)
from anomalib_ccl.errors import InputError

GREY = np.arange(0, 256, 4, dtype=np.uint8).reshape(4, 16)
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)
GREY_TENSOR = torch.from_numpy(GREY / 255).float().expand(3, -1, -1)
COLOUR_TENSOR = torch.from_numpy(COLOUR / 255).float().permute(2, 0, 1)


def written(path, pixels, mode=None):
    """Write pixels of any type: PIL writes no deep images of several channels."""
    if pixels.ndim == 3 and pixels.dtype != np.uint8:
        assert cv2.imwrite(str(path), pixels[..., [2, 1, 0, 3][: pixels.shape[-1]]])
    else:
        image = Image.fromarray(pixels)
        (image.convert(mode) if mode else image).save(path)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".PNG"])
def test_images_of_8_bits_are_those_of_anomalib_to_the_last_bit(tmp_path, suffix):
    for name, pixels in (("grey", GREY), ("colour", COLOUR)):
        path = written(tmp_path / f"{name}{suffix}", pixels)
        assert not is_high_bit_depth(path)
        assert torch.equal(read_image(path), anomalib_read_image(path, as_tensor=True))


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGBA", ".png"), ("P", ".png"), ("CMYK", ".tif"), ("RGB", ".webp"), ("RGB", ".jpeg")]
)
def test_colours_are_kept_in_every_mode(tmp_path, mode, suffix):
    smooth = cv2.resize(COLOUR, (64, 64))
    path = written(tmp_path / f"image{suffix}", smooth, mode)
    image = read_image(path)
    assert image.shape == (3, 64, 64)
    assert (image.permute(1, 2, 0) - torch.from_numpy(smooth / 255)).abs().mean() < (0.15 if mode == "P" else 0.05)


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_is_expanded(tmp_path, mode):
    image = read_image(written(tmp_path / "image.png", np.uint8(255) * (GREY > 99), mode))
    assert torch.equal(image, torch.from_numpy(np.float32(GREY > 99)).expand(3, -1, -1))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", [".png", ".tiff", ".TIF", ".pgm"])
def test_grey_of_16_bits_is_scaled_by_the_range_of_the_camera(tmp_path, bits, suffix):
    white = 2**bits - 1
    path = written(tmp_path / f"image{suffix}", np.round(GREY / 252 * white).astype(np.uint16))
    ranges, deep = find_ranges([path])
    assert (ranges.integers, deep) == ((0, white), 1)
    torch.testing.assert_close(read_image(path, ranges), GREY_TENSOR / GREY_TENSOR.max(), atol=1 / white, rtol=0)


@pytest.mark.parametrize(("suffix", "alpha"), [(".png", 0), (".png", 1), (".tiff", 0), (".tiff", 1), (".ppm", 0)])
def test_colour_of_16_bits_is_scaled_by_the_range_of_the_camera(tmp_path, suffix, alpha):
    pixels = COLOUR.astype(np.uint16) * 16
    pixels = np.dstack([pixels, pixels[..., :1]]) if alpha else pixels
    path = written(tmp_path / f"image{suffix}", pixels)
    ranges, deep = find_ranges([path])
    assert (ranges.integers, deep) == ((0, 4095), 1)
    torch.testing.assert_close(read_image(path, ranges), COLOUR_TENSOR * 255 * 16 / 4095)


@pytest.mark.parametrize("pixels", [GREY, COLOUR])
@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (-20, 70)])
def test_floats_are_scaled_by_their_range(tmp_path, pixels, low, high):
    scaled = (pixels / 255 * (high - low) + low).astype(np.float32)
    path = written(tmp_path / "image.tiff", scaled)
    ranges, deep = find_ranges([path])
    assert deep == 1
    expected = torch.from_numpy(pixels / 255).float().reshape(4, 16, -1).expand(-1, -1, 3).permute(2, 0, 1)
    if high > 1:
        expected = (expected - expected.min()) / (expected.max() - expected.min())
    torch.testing.assert_close(read_image(path, ranges), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff", "grey.tiff", "deep.tiff", "deep.png"])
def test_images_are_turned_as_their_exif_data_tell(tmp_path, orientation, suffix):
    kinds = {"g": GREY, "d": GREY.astype(np.uint16) * 257}
    image = Image.fromarray(cv2.resize(kinds.get(suffix[0], COLOUR), (48, 16)))
    exif = image.getexif()
    exif[0x0112] = orientation
    path = tmp_path / f"image{suffix}"
    image.save(path, exif=exif)
    with path.open("rb") as file, Image.open(file) as stored:  # of a path, PIL reads turned grey TIFF files wrong
        expected = to_rgb(np.asarray(ImageOps.exif_transpose(stored)))
    torch.testing.assert_close(read_image(path), torch.from_numpy(expected).permute(2, 0, 1))


@pytest.mark.parametrize("frame", [GREY, GREY[..., None], COLOUR, np.dstack([COLOUR, GREY]), Image.fromarray(GREY)])
def test_frames_are_read_as_files_are(frame, tmp_path):
    pixels = np.asarray(frame)
    expected = COLOUR / 255 if pixels.ndim == 3 and pixels.shape[-1] > 1 else np.stack([GREY / 255] * 3, -1)
    np.testing.assert_allclose(to_rgb(frame), expected, atol=1e-7)
    if isinstance(frame, np.ndarray):
        np.testing.assert_allclose(to_rgb(frame.astype(np.uint16) * 257), expected, atol=1e-7)
        np.testing.assert_allclose(to_rgb((frame / 255).astype(np.float32)), expected, atol=1e-7)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((2, 3, 4, 5)), r"array of shape \(2, 3, 4, 5\) is no image"),
        (np.zeros((2, 3), complex), "pixels of type complex128"),
        (np.float32([[0, np.nan]]), "no numbers"),
        (np.ma.array(GREY, mask=GREY > 9), r"masked array may have no value; give them one with its method filled"),
        (np.zeros((2, 2), np.int32), "what is white in integers of 32 bits"),
    ],
)
def test_arrays_that_are_no_images_are_refused(frame, message):
    with pytest.raises(InputError, match=message):
        to_rgb(frame)


@pytest.mark.parametrize("content", [None, b"", b"no image", "cut", np.float32([[0, np.nan]])])
def test_file_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "image.tiff"
    if isinstance(content, np.ndarray):
        written(path, content)
    elif content == "cut":
        path.write_bytes(written(path, GREY).read_bytes()[:60])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"cannot read image {path}: "):
        read_image(path)


@pytest.mark.parametrize("content", [b"P6\n20 2x\n255\n123", b"P6\n60000 60000\n255\n"])
def test_head_that_cannot_be_read_stops_nothing_before_the_image_is_named(tmp_path, content):
    path = tmp_path / "image.ppm"
    path.write_bytes(content)
    assert (is_high_bit_depth(path), orientation_of(path)) == (False, 1)
    assert find_ranges([path]) == (PixelRanges(), 0)
    with pytest.raises(InputError, match=f"cannot read image {path}: "):
        read_image(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_channels_in_planes_are_read_right_or_refused(tmp_path, dtype):
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, COLOUR.transpose(2, 0, 1).astype(dtype), photometric="rgb", planarconfig="separate")
    if dtype == np.uint8:
        torch.testing.assert_close(read_image(path), COLOUR_TENSOR)
    else:
        assert is_high_bit_depth(path)
        with pytest.raises(InputError, match=f"cannot read image {path}: its channels lie in planes"):
            read_image(path)
