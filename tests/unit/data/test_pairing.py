"""Which mask belongs to which image."""

from pathlib import Path

import pytest

from anomalib_ccl.data.pairing import pair_masks
from anomalib_ccl.errors import InputError

BAD, TRUTH = Path("test/bad"), Path("ground_truth/bad")


def paired(images: list[str], masks: list[str]) -> dict[str, list[str]]:
    found = pair_masks({BAD / name: Path(name) for name in images}, {TRUTH / name: Path(name) for name in masks}, BAD)
    return {
        image.relative_to(BAD).as_posix(): sorted(mask.relative_to(TRUTH).as_posix() for mask in masks)
        for image, masks in found.items()
    }


@pytest.mark.parametrize(
    "mask",
    ["{}_mask.png", "{}.png", "{}.bmp", "{}_gt.PNG", "mask_{}.png", "{}mask.png", "{}.jpg.png", "{}/000.png"],
)
@pytest.mark.parametrize("image", ["{}", "IMG_{}", "größe {}", "目录{}", "a.b-{}"])
def test_masks_pair_by_name_whatever_the_order_of_the_names(image, mask):
    names = [image.format(number) for number in (1, 2, 9, 10, 11, 100)]
    assert paired([f"{name}.jpg" for name in names], [mask.format(name) for name in reversed(names)]) == {
        f"{name}.jpg": [mask.format(name)] for name in names
    }


@pytest.mark.parametrize(
    "mask_of",
    [
        {"GR\u00dcN.png": ["gru\u0308n_MASK.png"]},  # case, and how umlauts are spelt, do not matter
        {"a.png": ["a_mask.png"], "A.png": ["A_mask.png"]},  # but where images differ in nothing else
        {f"{name}.png": [f"{name}_mask.png"] for name in ("part", "part_2", "part_2_left")},  # the longest name counts
        {"lot1/1.png": ["lot1/1_mask.png"], "lot2/1.png": ["lot2/1_mask.png"]},  # folders tell them apart
        {"lot1/1.png": ["lot1/1.png"], "lot2/1.png": ["lot2/1.png"]},
        {"000.png": [], "005.png": ["005/000.png", "005/001.png"]},  # all masks in the folder of an image
        {"1.png": [], "10.png": ["10_mask.png"]},  # images may lack masks
    ],
)
def test_names_of_every_kind_are_understood(mask_of):
    masks = [mask for of_image in mask_of.values() for mask in of_image]
    assert paired(list(mask_of), masks[::-1]) == {image: of_image for image, of_image in mask_of.items() if of_image}


@pytest.mark.parametrize("mask", ["3_mask.png", "3_mask_1.png", "100.png", "parts_mask.png", "lot9/1_mask.png"])
def test_mask_that_fits_no_image_is_named(mask):
    images = ["1.png", "10.png", "part.png", "lot1/1.png"] if "/" not in mask else ["lot1/1.png"]
    with pytest.raises(InputError, match=f"mask ground_truth/bad/{mask} fits no image in test/bad: .*rename or remove"):
        paired(images, [mask])


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (["1.jpg", "1.png"], ["1_mask.png"], r"mask .*/1_mask.png fits test/bad/1.jpg and test/bad/1.png; rename it"),
        (
            ["1.png"],
            ["1.png", "1_mask.png"],
            r"image test/bad/1.png has the masks .*/1.png and .*/1_mask.png; keep one",
        ),
    ],
)
def test_what_fits_twice_is_named_with_both(images, masks, message):
    with pytest.raises(InputError, match=message):
        paired(images, masks)
