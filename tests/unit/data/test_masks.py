"""Which mask belongs to which image."""

from pathlib import Path

import pytest

from anomalib_ccl.data.masks import pair_masks

BAD, TRUTH = Path("test/bad"), Path("ground_truth/bad")


def paired(images: list[str], masks: list[str]) -> dict[str, list[str]]:
    found = pair_masks({BAD / name: Path(name) for name in images}, {TRUTH / name: Path(name) for name in masks}, BAD)
    return {
        image.relative_to(BAD).as_posix(): [mask.relative_to(TRUTH).as_posix() for mask in masks]
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


def test_case_and_the_spelling_of_umlauts_do_not_matter():
    decomposed = "gru\u0308n_MASK.png"
    assert paired(["GR\u00dcN.png"], [decomposed]) == {"GR\u00dcN.png": [decomposed]}


def test_case_tells_images_apart_that_differ_in_nothing_else():
    assert paired(["a.png", "A.png"], ["A_mask.png", "a_mask.png"]) == {
        "a.png": ["a_mask.png"],
        "A.png": ["A_mask.png"],
    }


def test_longest_name_in_the_name_of_a_mask_counts():
    names = ["part.png", "part_2.png", "part_2_left.png"]
    masks = [f"{Path(name).stem}_mask.png" for name in names]
    assert paired(names, masks) == {name: [mask] for name, mask in zip(names, masks, strict=True)}


def test_folders_tell_images_of_one_name_apart():
    images = ["lot1/1.png", "lot2/1.png"]
    assert paired(images, ["lot2/1_mask.png", "lot1/1_mask.png"]) == {
        "lot1/1.png": ["lot1/1_mask.png"],
        "lot2/1.png": ["lot2/1_mask.png"],
    }
    assert paired(images, images) == {image: [image] for image in images}


def test_all_masks_in_the_folder_of_an_image_are_its_own():
    masks = ["005/000.png", "005/001.png"]
    assert paired(["000.png", "005.png"], masks) == {"005.png": masks}


def test_images_may_lack_masks():
    assert paired(["1.png", "10.png"], ["10_mask.png"]) == {"10.png": ["10_mask.png"]}


@pytest.mark.parametrize("mask", ["3_mask.png", "100.png", "parts_mask.png", "lot9/1_mask.png"])
def test_mask_that_fits_no_image_is_named(mask):
    images = ["1.png", "10.png", "part.png", "lot1/1.png"] if "/" not in mask else ["lot1/1.png"]
    with pytest.raises(ValueError, match=f"mask ground_truth/bad/{mask} fits no image in test/bad: .*rename or remove"):
        paired(images, [mask])


def test_mask_that_fits_two_images_is_named_with_both():
    with pytest.raises(ValueError, match=r"mask .*/1_mask.png fits test/bad/1.jpg and test/bad/1.png; rename it"):
        paired(["1.jpg", "1.png"], ["1_mask.png"])


def test_image_with_two_masks_is_named_with_both():
    with pytest.raises(ValueError, match=r"image test/bad/1.png has the masks .*/1.png and .*/1_mask.png; keep one"):
        paired(["1.png"], ["1.png", "1_mask.png"])
