"""Sorting images into classes, from features whose groups are known."""

import warnings

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import v_measure_score

from anomalib_ccl.classes.clustering import pseudo_classes
from anomalib_ccl.errors import InputError


def groups(
    count: int, images: int, spread: float = 0.05, seed: int = 0
) -> tuple[NDArray[np.float16], NDArray[np.int_]]:
    """Features of ``images`` images of each of ``count`` products, in mixed order, and the product of each."""
    generator = np.random.default_rng(seed)
    truth = generator.permutation(np.repeat(np.arange(count), images))
    centres = generator.normal(size=(count, 24))
    features = centres[truth] + spread * np.sqrt(24) * generator.normal(size=(len(truth), 24))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16), truth


@pytest.mark.parametrize("count", [2, 5, 11])
@pytest.mark.parametrize("auto", [True, False])
def test_products_are_told_apart_whether_their_number_is_given_or_not(count: int, auto: bool) -> None:
    features, truth = groups(count, images=8)
    found = pseudo_classes(features, "auto" if auto else count)
    assert v_measure_score(truth, found.labels) == 1
    assert found.silhouette > 0.5


@pytest.mark.parametrize("images", [1, 2, 3, 40])
def test_one_product_is_one_class(images: int) -> None:
    features, _ = groups(1, images, spread=0.2)
    assert pseudo_classes(features).labels.tolist() == [0] * images


def test_same_features_give_the_same_classes() -> None:
    features, _ = groups(3, images=20, spread=0.4)
    first, second = pseudo_classes(features, 7), pseudo_classes(features.copy(), 7)
    assert first.labels.tolist() == second.labels.tolist()
    assert first.silhouette == second.silhouette


def test_classes_are_numbered_as_they_appear() -> None:
    features, _ = groups(6, images=5)
    labels = pseudo_classes(features).labels.tolist()
    assert list(dict.fromkeys(labels)) == list(range(6))


@pytest.mark.parametrize("k", ["auto", 1, 3, 12])
@pytest.mark.parametrize("noise", [0, 1e-5])
def test_identical_images_are_one_class_whatever_the_rounding(k: int, noise: float) -> None:
    generator = np.random.default_rng(0)
    same = np.full((12, 100), 0.1) + noise * generator.normal(size=(12, 100))
    assert set(pseudo_classes(same.astype(np.float16), k).labels.tolist()) == {0}


def test_groups_of_equal_images_are_never_split() -> None:
    features = np.repeat(np.eye(3), 4, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pseudo_classes(features, 5).labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_as_many_classes_as_images_are_one_for_each() -> None:
    features, _ = groups(3, images=2)
    found = pseudo_classes(features, 6)
    assert found.labels.tolist() == list(range(6))
    assert np.isnan(found.silhouette)


def test_all_images_get_their_class_where_only_a_sample_finds_the_clusters() -> None:
    features, truth = groups(3, images=7_000)
    assert v_measure_score(truth, pseudo_classes(features, 3).labels) == 1


def test_single_odd_image_among_thousands_is_a_class_of_its_own() -> None:
    features = np.tile(np.eye(2)[0], (5_000, 1)) + np.linspace(0, 0.05, 5_000)[:, None]
    features[4_321] = [0, 5]
    assert np.flatnonzero(pseudo_classes(features, 2).labels).tolist() == [4_321]


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (5, "n_pseudo_classes is 5, but there are only 4 training images; give at most 4, or 'auto'"),
        (0, "n_pseudo_classes must be 'auto' or a whole number from 1 on, got 0"),
        ("many", "n_pseudo_classes must be 'auto' or a whole number from 1 on, got 'many'"),
    ],
)
def test_impossible_numbers_are_named_with_the_way_out(k: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pseudo_classes(np.eye(4), k)
