"""Images of every kind, read right."""

import cv2
import numpy as np
import pytest
import torch
from anomalib.data.utils import image as anomalib_image
from PIL import Image, ImageOps

from anomalib_ccl.data.reading import PixelRanges, find_ranges, is_deep, read_image, read_masks, to_rgb

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
        assert not is_deep(path)
        own = getattr(anomalib_image.read_image, "args", [anomalib_image.read_image])[0]  # as it is without the plugin
        assert torch.equal(read_image(path), own(path, as_tensor=True))


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


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("alpha", [False, True])
def test_colour_of_16_bits_is_scaled_by_the_range_of_the_camera(tmp_path, suffix, alpha):
    pixels = COLOUR.astype(np.uint16) * 16
    pixels = np.dstack([pixels, pixels[..., :1]]) if alpha else pixels
    path = written(tmp_path / f"image{suffix}", pixels)
    ranges, _ = find_ranges([path])
    assert ranges.integers == (0, 4095)
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


def test_range_is_that_of_all_images_and_none_is_clipped(tmp_path):
    dark = written(tmp_path / "dark.png", np.full((2, 2), 100, np.uint16))
    bright = written(tmp_path / "bright.png", np.full((2, 2), 4000, np.uint16))
    ranges, _ = find_ranges([dark, bright])
    assert read_image(dark, ranges).max() == pytest.approx(100 / 4095)
    brighter = written(tmp_path / "brighter.png", np.full((2, 2), 8190, np.uint16))
    assert read_image(brighter, ranges).max() == pytest.approx(2)


def test_pixels_that_are_no_numbers_are_refused(tmp_path):
    path = written(tmp_path / "image.tiff", np.float32([[0, np.nan]]))
    with pytest.raises(ValueError, match="no numbers"):
        read_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
def test_images_are_turned_as_their_exif_data_tell(tmp_path, orientation, suffix):
    image = Image.fromarray(cv2.resize(COLOUR, (48, 16)))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"image{suffix}", exif=exif)
    with Image.open(tmp_path / f"image{suffix}") as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored)) / 255
    torch.testing.assert_close(
        read_image(tmp_path / f"image{suffix}"), torch.from_numpy(expected).float().permute(2, 0, 1)
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 2)])
def test_images_of_a_few_pixels_are_read(tmp_path, size):
    assert read_image(written(tmp_path / "image.png", np.zeros(size, np.uint8))).shape == (3, *size)


@pytest.mark.parametrize("frame", [GREY, GREY[..., None], COLOUR, np.dstack([COLOUR, GREY]), Image.fromarray(GREY)])
def test_frames_are_read_as_files_are(frame, tmp_path):
    pixels = np.asarray(frame)
    expected = COLOUR / 255 if pixels.ndim == 3 and pixels.shape[-1] > 1 else np.stack([GREY / 255] * 3, -1)
    np.testing.assert_allclose(to_rgb(frame), expected, atol=1e-7)
    if isinstance(frame, np.ndarray):
        np.testing.assert_allclose(to_rgb(frame.astype(np.uint16) * 257), expected, atol=1e-7)
        np.testing.assert_allclose(to_rgb((frame / 255).astype(np.float32)), expected, atol=1e-7)


def test_arrays_that_are_no_images_are_refused():
    with pytest.raises(ValueError, match=r"array of shape \(2, 3, 4, 5\) is no image"):
        to_rgb(np.zeros((2, 3, 4, 5)))
    with pytest.raises(ValueError, match="pixels of type complex128"):
        to_rgb(np.zeros((2, 3), complex))


@pytest.mark.parametrize("value", [np.uint8(1), np.uint8(255), True, np.uint16(1), np.uint16(65535), np.float32(1)])
def test_every_pixel_of_a_mask_but_black_is_a_defect(tmp_path, value):
    pixels = np.zeros((4, 6), np.array(value).dtype)
    pixels[1:3, 2:5] = value
    mask = written(tmp_path / "mask.tif", pixels)
    assert torch.equal(read_masks([mask], mask, (4, 6)), torch.from_numpy(pixels > 0).byte())


def test_mask_is_brought_to_the_size_of_its_image(tmp_path):
    pixels = np.zeros((4, 6), np.uint8)
    pixels[1:3, 2:5] = 255
    large = written(tmp_path / "large.png", pixels.repeat(3, 0).repeat(3, 1))
    image = written(tmp_path / "image.png", pixels)
    assert torch.equal(read_masks([large], image, (4, 6)), torch.from_numpy(pixels > 0).byte())


def test_mask_of_an_image_that_is_turned_is_turned_if_its_size_says_so(tmp_path):
    pixels = np.zeros((4, 6), np.uint8)
    pixels[0, 0] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "image.png", exif=exif)
    upright = np.rot90(pixels, -1).copy()
    expected = torch.from_numpy(upright > 0).byte()
    for mask in (written(tmp_path / "stored.png", pixels), written(tmp_path / "upright.png", upright)):
        assert torch.equal(read_masks([mask], tmp_path / "image.png", (6, 4)), expected)


def test_blurred_edges_of_a_jpeg_mask_are_no_defect(tmp_path):
    pixels = np.zeros((32, 32), np.uint8)
    pixels[9:20, 9:20] = 255
    mask = written(tmp_path / "mask.jpg", pixels)
    assert torch.equal(read_masks([mask], mask, (32, 32)), torch.from_numpy(pixels > 0).byte())


def test_ranges_are_plain_numbers():
    assert PixelRanges() == PixelRanges(integers=None, floats=(0.0, 1.0))
