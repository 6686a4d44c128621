"""Which pixels of a mask are defective, in files of every kind."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_ccl.data.masks import read_mask, read_masks
from anomalib_ccl.errors import InputError

DEFECT = np.zeros((32, 48), bool)
DEFECT[9:20, 7:30] = True
BLACK, WHITE, RED, CLEAR = (0, 0, 0, 255), (255, 255, 255, 255), (200, 0, 0, 255), (255, 255, 255, 0)


def rgba(brush, background, defect=DEFECT) -> Image.Image:
    return Image.fromarray(np.where(defect[..., None], np.uint8(brush), np.uint8(background)))


def grey(value) -> Image.Image:
    return Image.fromarray(DEFECT * value)


def palette(colours, transparent=None) -> Image.Image:
    """Of index 1 where there is a defect, else of index 0."""
    image = Image.fromarray(DEFECT.astype(np.uint8)).convert("P")
    image.putpalette([value for colour in colours for value in colour])
    if transparent is not None:
        image.info["transparency"] = transparent
    return image


@pytest.mark.parametrize(
    ("name", "image"),
    [
        *[
            (f"grey {np.array(v).dtype} {v}.tif", grey(v))
            for v in (np.uint8(1), np.uint8(255), np.uint16(1), np.float32(1))
        ],
        ("one bit.png", Image.fromarray(DEFECT)),
        ("white on black.jpg", grey(np.uint8(255))),
        ("red on black.png", rgba(RED, BLACK).convert("RGB")),
        ("opaque white on black.png", rgba(WHITE, BLACK)),
        ("black brush.png", rgba(BLACK, CLEAR)),
        ("black brush on transparent black.png", rgba(BLACK, (0, 0, 0, 0))),
        ("half transparent red brush.png", rgba((200, 0, 0, 99), CLEAR)),
        ("white brush.png", rgba(WHITE, CLEAR)),
        ("grey and alpha.png", rgba(BLACK, CLEAR).convert("LA")),
        ("opaque grey and alpha.png", rgba(WHITE, BLACK).convert("LA")),
        ("palette.png", palette([(0, 0, 0), (250, 128, 0)])),
        ("palette of a transparent white.png", palette([(255, 255, 255), (9, 9, 9)], transparent=0)),
        ("palette of a black brush.png", palette([(250, 0, 250), (0, 0, 0)], transparent=0)),
        ("everything.png", rgba(WHITE, WHITE)),
        ("nothing.png", rgba(CLEAR, CLEAR)),
        ("nothing.jpg", grey(np.uint8(3))),
    ],
)
def test_what_differs_from_the_background_is_defective(tmp_path, name, image):
    image.save(tmp_path / name)
    expected = np.full_like(DEFECT, name.startswith("everything")) if name[:5] in {"nothi", "every"} else DEFECT
    np.testing.assert_array_equal(read_mask(tmp_path / name), expected)


@pytest.mark.parametrize(
    "image",
    [
        rgba(RED, WHITE).convert("RGB"),  # either may be the background
        palette([(250, 128, 0), (0, 128, 0)]),
        grey(np.uint8(200)).point(lambda value: value + 50),
        rgba((0, 0, 0, 99), (0, 0, 0, 9)),
        rgba((255, 255, 255, 0), (0, 0, 0, 0)),
        Image.fromarray(np.where(np.arange(32)[:, None, None] < 4, np.uint8(CLEAR), np.asarray(rgba(WHITE, BLACK)))),
    ],
)
def test_mask_whose_background_is_not_known_is_refused_by_name(tmp_path, image):
    path = tmp_path / "mask.png"
    image.save(path)
    with pytest.raises(InputError, match=f"cannot read mask {path}: its background is not known; draw"):
        read_mask(path)


def test_mask_is_brought_to_the_size_of_its_image(tmp_path):
    Image.fromarray(DEFECT.repeat(3, 0).repeat(3, 1)).save(tmp_path / "large.png")
    grey(np.uint8(9)).save(tmp_path / "image.png")
    found = read_masks([tmp_path / "large.png"], tmp_path / "image.png", DEFECT.shape)
    assert torch.equal(found, torch.from_numpy(DEFECT).byte())


def test_defect_smaller_than_a_pixel_is_kept(tmp_path):
    pixels = np.zeros((320, 480), np.uint8)
    pixels[97, 71] = 1
    Image.fromarray(pixels).save(tmp_path / "large.png")
    grey(np.uint8(9)).save(tmp_path / "image.png")
    found = read_masks([tmp_path / "large.png"], tmp_path / "image.png", DEFECT.shape)
    assert found.nonzero().tolist() == [[9, 7]]


@pytest.mark.parametrize(
    ("shape", "fits"), [((11, 16), True), ((213, 319), True), ((32, 32), False), ((48, 32), False)]
)
def test_mask_of_other_proportions_than_its_image_is_refused(tmp_path, shape, fits):
    Image.fromarray(np.ones(shape, np.uint8)).save(tmp_path / "mask.png")
    cv2.imwrite(str(tmp_path / "image.tif"), np.zeros((*DEFECT.shape, 3), np.float32))
    if fits:
        assert read_masks([tmp_path / "mask.png"], tmp_path / "image.tif", DEFECT.shape).all()
    else:
        with pytest.raises(
            InputError, match=f"mask .*mask.png of {shape[1]} × {shape[0]} pixels has other proportions than its"
        ):
            read_masks([tmp_path / "mask.png"], tmp_path / "image.tif", DEFECT.shape)


def test_mask_of_an_image_that_is_turned_is_turned_if_its_size_says_so(tmp_path):
    image = grey(np.uint8(255))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "image.png", exif=exif)
    upright = np.rot90(DEFECT, -1).copy()
    grey(np.uint8(255)).save(tmp_path / "stored.png")
    Image.fromarray(upright).save(tmp_path / "upright.png")
    for name in ("stored.png", "upright.png"):
        found = read_masks([tmp_path / name], tmp_path / "image.png", upright.shape)
        assert torch.equal(found, torch.from_numpy(upright).byte())
