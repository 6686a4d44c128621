"""Whatever a camera, PIL, torch or a file gives becomes the same batch; what cannot be right is refused."""

import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_ccl.data.reading import PixelRanges
from anomalib_ccl.errors import InputError
from anomalib_ccl.export.frames import to_batch

# Neither axis could be taken for channels.
RGB = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
RGB[0, 0], RGB[0, 1] = 0, 255
GREY = RGB[..., 0]
UNIT = (RGB / 255).astype(np.float32)
DEEP = RGB.astype(np.uint16) * 257


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


COLOUR = {
    "PIL": Image.fromarray(RGB),
    "PIL with alpha": Image.fromarray(np.dstack([RGB, GREY])),
    "alpha": np.dstack([RGB, GREY]),
    "channels first": RGB.transpose(2, 0, 1),
    "batch of one": RGB[None],
    "float32": UNIT,
    "uint16": DEEP,
    "big-endian": DEEP.astype(">u2"),
    "read-only": read_only(UNIT),
    "tensor": torch.from_numpy(UNIT).permute(2, 0, 1),
    "tensor with gradient": torch.from_numpy(UNIT).requires_grad_(),
}
MONOCHROME = {
    "Mono8": GREY,
    "batch": GREY[None, ..., None],
    "Mono16": GREY.astype(np.uint16) * 257,
    "PIL L": Image.fromarray(GREY),
    "PIL LA": Image.fromarray(np.dstack([GREY, GREY])),
    "PIL I;16": Image.fromarray(GREY.astype(np.uint16) * 257),
    "PIL I": Image.fromarray(GREY).convert("I"),
    "PIL F": Image.fromarray(GREY.astype(np.float32) / 255),
}


@pytest.mark.parametrize("frame", COLOUR.values(), ids=COLOUR)
def test_a_picture_in_colour_is_the_same_in_every_form(frame):
    batch = to_batch(frame)
    assert (batch.shape, batch.dtype) == ((1, 3, 7, 9), np.float32)
    np.testing.assert_allclose(batch[0], UNIT.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize("frame", MONOCHROME.values(), ids=MONOCHROME)
def test_a_grey_picture_is_the_same_in_every_form(frame):
    batch = to_batch(frame)
    assert batch.shape == (1, 3, 7, 9)
    np.testing.assert_allclose(batch[0], np.stack([UNIT[..., 0]] * 3), atol=1e-6)


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "PA"])
def test_pil_images_of_other_modes_are_as_pil_makes_them_rgb(mode):
    source = Image.fromarray(np.dstack([GREY, GREY])) if mode == "PA" else Image.fromarray(RGB)
    image = source.convert(mode)
    np.testing.assert_array_equal(to_batch(image), to_batch(np.asarray(image.convert("RGB"))))


def test_floats_of_half_precision_and_booleans_are_taken():
    np.testing.assert_allclose(to_batch(torch.from_numpy(UNIT).bfloat16()), to_batch(UNIT), atol=0.04)
    np.testing.assert_array_equal(to_batch(GREY > 100), to_batch((GREY > 100).astype(np.uint8) * 255))


def test_the_range_is_that_of_the_type_and_never_of_the_one_image():
    np.testing.assert_allclose(to_batch(UNIT * np.float32(1 + 1e-6)), to_batch(UNIT), atol=1e-5)
    nearly_black = np.ones((7, 9), np.uint8)
    assert to_batch(nearly_black).max() == np.float32(1 / 255)
    assert to_batch(nearly_black.astype(np.uint16)).max() == np.float32(1 / 65535)


def test_each_image_of_a_batch_is_what_it_is_alone():
    batch = np.stack([DEEP, DEEP[::-1]])
    expected = np.concatenate([to_batch(DEEP), to_batch(DEEP[::-1])])
    for frames in (batch, batch.transpose(0, 3, 1, 2), torch.from_numpy(batch)):
        np.testing.assert_array_equal(to_batch(frames), expected)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 9, 3), (1, 3, 3, 9)),  # channels last, as anomalib has it
        ((3, 9, 8), (1, 3, 9, 8)),
        ((1, 2048), (1, 3, 1, 2048)),  # a line
        ((5, 3, 9, 4), (5, 3, 3, 9)),
    ],
)
def test_the_last_axis_has_the_channels_if_it_has_1_3_or_4(shape, expected):
    assert to_batch(np.zeros(shape, np.uint8)).shape == expected


def test_12_bits_in_16_are_as_white_as_in_training():
    twelve = np.round(UNIT * 4095).astype(np.uint16)
    ranges = PixelRanges(integers=(0, 4095))
    for frame in (twelve, twelve.astype(np.int32), torch.from_numpy(twelve)):
        np.testing.assert_allclose(to_batch(frame, ranges), to_batch(RGB, ranges), atol=1 / 4095)
    assert to_batch(twelve).max() < 0.07


def test_frames_of_another_depth_than_in_training_bring_a_warning():
    with pytest.warns(UserWarning, match="brighter than 4095, which was white in training"):
        to_batch(DEEP, PixelRanges(integers=(0, 4095)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_batch(DEEP // 16, PixelRanges(integers=(0, 4095)))


def test_a_file_is_what_its_pixels_are(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    grey, high, floats, rgb = (Image.fromarray(pixels) for pixels in (GREY, DEEP[..., 0], UNIT[..., 0], RGB))
    files = {"1.png": grey, "2.png": high, "2.tif": high, "3.tif": floats, "4.jpg": rgb.convert("CMYK"), "5.tif": rgb}
    for name, image in files.items():
        path = tmp_path / name
        image.save(path, **({"exif": turned} if name == "5.tif" else {}))
        for ranges in (None, PixelRanges()):
            of_file = to_batch(path, ranges)
            np.testing.assert_allclose(of_file, to_batch(Image.open(path), ranges), atol=1e-6, err_msg=name)
            np.testing.assert_array_equal(of_file, to_batch(str(path), ranges))
    assert to_batch(tmp_path / "5.tif", PixelRanges()).shape == (1, 3, 9, 7)


SHAPES = r"accepted are .* \(H, W\), .* 1, 3 or 4 channels C, of uint8, uint16, bool, or floats from 0 to 1"
REFUSED = {
    "two channels": (RGB[..., :2], r"shape \(7, 9, 2\) and type uint8 is no image; " + SHAPES),
    "grey batch": (np.zeros((2, 7, 9), np.uint8), r"shape \(2, 7, 9\) .* is no image; " + SHAPES),
    "no row": (RGB[:0], r"shape \(0, 9, 3\) and type uint8 has no pixels; " + SHAPES),
    "bytes as floats": (RGB.astype(np.float32), r"type float32 has values from 0 to 255: floats must"),
    "NaN": (np.where(UNIT > 0.9, np.nan, UNIT), "has values from nan to nan"),
    "infinite in a tensor": (torch.full((3, 7, 9), torch.inf), r"shape \(3, 7, 9\) .* from inf to inf"),
    "one of a batch": (np.stack([UNIT, UNIT * 255]), r"array of shape \(2, 7, 9, 3\) .* has values from 0"),
    "deep int32": (DEEP.astype(np.int32), "type int32 has values from .* give uint8 or uint16"),
    "complex": (RGB.astype(complex), "type complex128 is no image; " + SHAPES),
    "nothing": (None, "NoneType is no image; " + SHAPES),
    "masked": (np.ma.masked_greater(RGB, 200), "MaskedArray is no image; " + SHAPES),
    "meta": (torch.zeros(3, 7, 9, device="meta"), "Tensor cannot be read: .*" + SHAPES),
    "sparse": (torch.from_numpy(GREY).to_sparse(), "Tensor cannot be read: .*" + SHAPES),
    "PIL La": (Image.new("La", (9, 7)), "PIL image of mode La and 7 × 9 pixels cannot be read: .*" + SHAPES),
    "PIL I": (Image.fromarray(DEEP[..., 0].astype(np.int32)), "PIL image of mode I and 7 × 9 .* has values"),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PendingDeprecationWarning")
@pytest.mark.parametrize(("frame", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_image_is_refused_in_one_sentence(frame, message):
    with pytest.raises(InputError, match=message) as caught:
        to_batch(frame)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.png", None, "there is no image {path}"),
        ("", None, "there is no image {path}; give the path of one"),
        ("text.png", b"no image", "cannot read image {path}: cannot identify"),
        ("float.tif", RGB[..., 0].astype(np.float32), "image {path} has values from "),
        ("32.tif", DEEP[..., 0].astype(np.int32), "cannot read image {path}: "),
    ],
)
def test_a_path_that_is_no_image_is_refused_by_its_name(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        Image.fromarray(content).save(path)
    with pytest.raises(InputError, match=re.escape(message.format(path=path))):
        to_batch(path)
