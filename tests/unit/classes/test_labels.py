"""Which class a training image has."""

import pytest
from pandas import DataFrame

from anomalib_ccl.classes.labels import class_names
from anomalib_ccl.errors import InputError

PATHS = [
    "/data/set/bolt/train/good/0.png",
    "/data/set/bolt/train/good/1.png",
    "/data/set/nut/train/good/0.png",
]


def test_category_is_preferred_where_the_samples_tell_it() -> None:
    samples = DataFrame({"image_path": PATHS, "category": ["a", "a", "b"]})
    expected = dict(zip(PATHS, ["a", "a", "b"], strict=True))
    assert class_names(samples, "auto") == class_names(samples, "category") == expected


def test_folder_is_the_first_one_in_which_the_paths_differ() -> None:
    samples = DataFrame({"image_path": PATHS, "category": ["a", "a", "b"]})
    assert list(class_names(samples, "folder").values()) == ["bolt", "bolt", "nut"]


@pytest.mark.parametrize("paths", [PATHS[:2], PATHS[:1]])
def test_images_in_one_folder_are_of_a_class_of_its_name(paths: list[str]) -> None:
    assert set(class_names(DataFrame({"image_path": paths}), "folder").values()) == {"good"}


@pytest.mark.parametrize("source", ["auto", "category"])
def test_category_of_the_datamodule_is_that_of_all_images(source: str) -> None:
    assert class_names(DataFrame({"image_path": PATHS}), source, "bolt") == dict.fromkeys(PATHS, "bolt")


def test_without_category_the_classes_must_be_found() -> None:
    assert class_names(DataFrame({"image_path": PATHS}), "auto") is None


def test_pseudo_classes_are_found_even_where_the_category_is_known() -> None:
    assert class_names(DataFrame({"image_path": PATHS, "category": ["a", "a", "b"]}), "pseudo", "a") is None


def test_asking_for_a_category_that_nobody_knows_names_the_way_out() -> None:
    with pytest.raises(
        InputError, match=r"needs a datamodule that knows the category.*MultiCategory.*'folder', 'pseudo' or 'auto'"
    ):
        class_names(DataFrame({"image_path": PATHS}), "category")
