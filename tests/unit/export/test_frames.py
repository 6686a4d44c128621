"""Whatever a camera, PIL, torch or a file gives becomes the same batch; what cannot be right is refused."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_ccl.data.ranges import PixelRanges
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
    "uint8": RGB,
    "PIL": Image.fromarray(RGB),
    "PIL with alpha": Image.fromarray(np.dstack([RGB, GREY])),
    "alpha": np.dstack([RGB, GREY]),
    "channels first": RGB.transpose(2, 0, 1),
    "alpha, channels first": np.dstack([RGB, GREY]).transpose(2, 0, 1),
    "batch of one": RGB[None],
    "batch of one, channels first": RGB.transpose(2, 0, 1)[None],
    "float32": UNIT,
    "float64": RGB / 255,
    "uint16": DEEP,
    "big-endian": DEEP.astype(">u2"),
    "big-endian float": UNIT.astype(">f4"),
    "int64": RGB.astype(np.int64),
    "uint32": RGB.astype(np.uint32),
    "not contiguous": np.repeat(RGB, 2, axis=1)[:, ::2],
    "turned twice": RGB[::-1][::-1],
    "read-only": read_only(UNIT),
    "tensor": torch.from_numpy(UNIT).permute(2, 0, 1),
    "tensor of uint16": torch.from_numpy(DEEP),
    "tensor with gradient": torch.from_numpy(UNIT).requires_grad_(),
}
MONOCHROME = {
    "Mono8": GREY,
    "Mono8 with a channel": GREY[..., None],
    "Mono8, channels first": GREY[None],
    "batch": GREY[None, ..., None],
    "Mono16": GREY.astype(np.uint16) * 257,
    "PIL L": Image.fromarray(GREY),
    "PIL LA": Image.fromarray(np.dstack([GREY, GREY])),
    "PIL I;16": Image.fromarray(GREY.astype(np.uint16) * 257),
    "PIL I;16B": Image.frombytes("I;16B", (9, 7), (GREY.astype(np.uint16) * 257).astype(">u2").tobytes()),
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


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "HSV", "RGBX", "PA"])
def test_pil_images_of_other_modes_are_as_pil_makes_them_rgb(mode):
    source = Image.fromarray(np.dstack([GREY, GREY])) if mode == "PA" else Image.fromarray(RGB)
    image = source.convert(mode)
    np.testing.assert_array_equal(to_batch(image), to_batch(np.asarray(image.convert("RGB"))))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_floats_of_half_precision_are_taken(kind):
    np.testing.assert_allclose(to_batch(torch.from_numpy(UNIT).to(kind)), to_batch(UNIT), atol=4e-3)


def test_false_is_black_and_true_is_white():
    assert to_batch(GREY > 100).max() == 1
    np.testing.assert_array_equal(to_batch(GREY > 100), to_batch((GREY > 100).astype(np.uint8) * 255))


def test_the_range_is_that_of_the_type_and_never_of_the_one_image():
    nearly_black = np.ones((7, 9), np.uint8)
    assert to_batch(nearly_black).max() == np.float32(1 / 255)
    assert to_batch(nearly_black.astype(np.uint16)).max() == np.float32(1 / 65535)


@pytest.mark.parametrize("form", ["channels last", "channels first", "tensor"])
def test_each_image_of_a_batch_is_what_it_is_alone(form):
    batch = np.stack([DEEP, DEEP[::-1]])
    frames = {"channels last": batch, "channels first": batch.transpose(0, 3, 1, 2), "tensor": torch.from_numpy(batch)}
    expected = np.concatenate([to_batch(DEEP), to_batch(DEEP[::-1])])
    np.testing.assert_array_equal(to_batch(frames[form]), expected)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 9, 3), (1, 3, 3, 9)),  # channels last, as anomalib has it
        ((3, 9, 4), (1, 3, 3, 9)),
        ((3, 9, 8), (1, 3, 9, 8)),
        ((1, 2048), (1, 3, 1, 2048)),  # a line
        ((1, 2048, 3), (1, 3, 1, 2048)),
        ((3, 3), (1, 3, 3, 3)),
        ((5, 3, 9, 4), (5, 3, 3, 9)),
        ((5, 3, 9, 8), (5, 3, 9, 8)),
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


def test_floats_are_scaled_as_in_training_beyond_its_range_too():
    frame = np.full((7, 9), 30.0)
    np.testing.assert_allclose(to_batch(frame, PixelRanges(floats=(10, 20))), 2)


def write(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_a_file_is_what_its_pixels_are(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    files = [
        write(tmp_path / "grey.png", Image.fromarray(GREY)),
        write(tmp_path / "deep.png", Image.fromarray(DEEP[..., 0])),
        write(tmp_path / "deep.tif", Image.fromarray(DEEP[..., 0])),
        write(tmp_path / "deep.pgm", Image.fromarray(DEEP[..., 0])),
        write(tmp_path / "float.tif", Image.fromarray(UNIT[..., 0])),
        write(tmp_path / "palette.png", Image.fromarray(RGB).convert("P")),
        write(tmp_path / "alpha.png", Image.fromarray(np.dstack([RGB, GREY]))),
        write(tmp_path / "one.png", Image.fromarray(GREY > 100)),
        write(tmp_path / "cmyk.jpg", Image.fromarray(RGB).convert("CMYK")),
        write(tmp_path / "turned.jpg", Image.fromarray(RGB), exif=turned),
        write(tmp_path / "turned.tif", Image.fromarray(RGB), exif=turned),
    ]
    for path in files:
        for ranges in (None, PixelRanges()):
            of_file = to_batch(path, ranges)
            np.testing.assert_allclose(of_file, to_batch(Image.open(path), ranges), atol=1e-6, err_msg=path.name)
            np.testing.assert_array_equal(of_file, to_batch(str(path), ranges))
    assert to_batch(files[-1], PixelRanges()).shape == (1, 3, 9, 7)


SHAPES = r"accepted are .* \(H, W\), .* 1, 3 or 4 channels C, of uint8, uint16, bool, or floats from 0 to 1"
REFUSED = {
    "two channels": (RGB[..., :2], ValueError, r"shape \(7, 9, 2\) and type uint8 is no image; " + SHAPES),
    "five channels": (np.zeros((7, 9, 5)), ValueError, r"shape \(7, 9, 5\) and type float64 is no image; " + SHAPES),
    "five axes": (RGB[None, None], ValueError, r"shape \(1, 1, 7, 9, 3\) .* is no image; " + SHAPES),
    "one axis": (np.zeros(9, np.uint8), ValueError, r"shape \(9,\) .* is no image; " + SHAPES),
    "a number": (3, TypeError, "int is no image; " + SHAPES),
    "no axis": (np.array(3), ValueError, r"shape \(\) .* is no image; " + SHAPES),
    "grey batch": (np.zeros((2, 7, 9), np.uint8), ValueError, r"shape \(2, 7, 9\) .* is no image; " + SHAPES),
    "no row": (RGB[:0], ValueError, r"shape \(0, 9, 3\) and type uint8 has no pixels; " + SHAPES),
    "no image": (RGB[None][:0], ValueError, r"shape \(0, 7, 9, 3\) .* has no pixels; " + SHAPES),
    "empty": (np.array([]), ValueError, r"shape \(0,\) .* has no pixels; " + SHAPES),
    "bytes as floats": (RGB.astype(np.float32), ValueError, r"type float32 has values from 0 to 255: floats must"),
    "a bit too bright": (UNIT * 1.01, ValueError, "has values from .* floats must lie between 0 and 1"),
    "negative": (-UNIT, ValueError, "has values from -1 .* floats must lie between 0 and 1"),
    "NaN": (np.where(UNIT > 0.9, np.nan, UNIT), ValueError, "has values from nan to nan"),
    "infinite": (np.where(UNIT > 0.9, np.inf, UNIT), ValueError, "has values from .* to inf"),
    "NaN in a tensor": (torch.full((3, 7, 9), torch.nan), ValueError, r"shape \(3, 7, 9\) .* from nan to nan"),
    "deep int32": (DEEP.astype(np.int32), ValueError, "type int32 has values from .* give uint8 or uint16"),
    "deep uint32": (DEEP.astype(np.uint32), ValueError, "type uint32 has values from .* give uint8 or uint16"),
    "negative int": (-RGB.astype(np.int16), ValueError, "type int16 has values from -2"),
    "complex": (RGB.astype(complex), TypeError, "type complex128 is no image; " + SHAPES),
    "objects": (RGB.astype(object), TypeError, "type object is no image; " + SHAPES),
    "text": (np.array([["a"]]), TypeError, "type <U1 is no image; " + SHAPES),
    "nothing": (None, TypeError, "NoneType is no image; " + SHAPES),
    "list": ([RGB, RGB], TypeError, "list is no image; " + SHAPES),
    "PIL La": (
        Image.new("La", (9, 7)),
        ValueError,
        "PIL image of mode La and 7 × 9 pixels cannot be read: .*" + SHAPES,
    ),
    "PIL F": (
        Image.fromarray(RGB[..., 0].astype(np.float32)),
        ValueError,
        "PIL image of mode F and 7 × 9 .* has values",
    ),
    "PIL I": (
        Image.fromarray(DEEP[..., 0].astype(np.int32)),
        ValueError,
        "PIL image of mode I and 7 × 9 .* has values",
    ),
}


@pytest.mark.parametrize(("frame", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_image_is_refused_in_one_sentence(frame, error, message):
    with pytest.raises(error, match=message) as caught:
        to_batch(frame)
    assert "\n" not in str(caught.value)


def test_one_bad_image_of_a_batch_is_refused_with_the_shape_of_all():
    batch = np.stack([UNIT, UNIT * 255])
    with pytest.raises(ValueError, match=r"array of shape \(2, 7, 9, 3\) and type float32 has values from 0"):
        to_batch(batch)


def test_what_is_no_number_is_refused_whatever_the_range_of_the_training():
    with pytest.raises(ValueError, match=r"array of shape \(7, 9\) and type float64 cannot be scaled: .*NaN"):
        to_batch(np.full((7, 9), np.nan), PixelRanges(floats=(10, 20)))


def test_floats_may_leave_the_range_by_rounding():
    np.testing.assert_allclose(to_batch(UNIT * np.float32(1 + 1e-6)), to_batch(UNIT), atol=1e-5)


def test_a_frame_is_left_as_it_is():
    frame = DEEP.copy()
    to_batch(frame)
    np.testing.assert_array_equal(frame, DEEP)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.png", None, "there is no image {path}"),
        ("", None, "{path} is a folder; give one image at a time"),
        ("text.png", b"no image", "cannot read image {path}: cannot identify"),
        ("empty.tif", b"", "cannot read image {path}: "),
    ],
)
def test_a_path_that_is_no_image_is_refused_by_its_name(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OSError, match=re.escape(message.format(path=path))):
        to_batch(path)


def test_a_file_whose_white_nobody_knows_is_refused_by_its_name(tmp_path):
    floats = write(tmp_path / "float.tif", Image.fromarray(RGB[..., 0].astype(np.float32)))
    with pytest.raises(ValueError, match=f"image {floats} has values from .* floats must lie between 0 and 1"):
        to_batch(floats)
    deep = write(tmp_path / "32.tif", Image.fromarray(DEEP[..., 0].astype(np.int32)))
    with pytest.raises(OSError, match=f"cannot read image {deep}: .* whole numbers of 32 bits"):
        to_batch(deep)
