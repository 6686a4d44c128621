"""Where heatmaps go, and what is known of images before they are predicted."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from anomalib_ccl.metrics.images import PassImages


def labelled(paths: list[str], labels: list[int] | None = None, **columns: list[str]) -> SimpleNamespace:
    frame = pd.DataFrame({"image_path": paths, "label_index": labels or [0] * len(paths), **columns})
    return SimpleNamespace(samples=frame)


def unlabelled(*paths: str) -> SimpleNamespace:
    return SimpleNamespace(image_filenames=[Path(path) for path in paths])


def places(images: PassImages, paths: list[str]) -> list[str]:
    return [images.place(path).as_posix() for path in paths]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["/a/cable/test/good/0.png", "/a/cable/test/cut/0.png"], ["cable/good/0.png", "cable/cut/0.png"]),
        (["/a/cable/test/good/0.png", "/a/cable/test/good/1.png"], ["cable/good/0.png", "cable/good/1.png"]),
        (
            ["/a/cable/train/good/0.png", "/a/cable/test/good/0.png"],
            ["cable/train/good/0.png", "cable/test/good/0.png"],
        ),
        (["/a/cable/OK/S1/0.jpg", "/a/cable/NG/AK/S1/0.jpg"], ["cable/OK/S1/0.jpg", "cable/NG/AK/S1/0.jpg"]),
        (["x/../cable/good/0.png", "/tmp/made/0.png"], None),
    ],
    ids=["MVTec AD", "one folder", "of two splits", "Real-IAD", "elsewhere"],
)
def test_images_of_a_category_have_places_of_their_own_in_its_folder(paths: list[str], expected: list[str]) -> None:
    found = places(PassImages([labelled(paths, category=["cable"] * len(paths))]), paths)
    assert len(set(found)) == len(paths)
    assert all(path.startswith("cable/") and ".." not in path for path in found)
    assert expected in (None, found)


def test_images_of_several_categories_and_of_none_are_kept_apart() -> None:
    paths = ["/a/b/test/good/0.png", "/a/c/test/good/0.png"]
    assert places(PassImages([labelled(paths, category=["set/b", "c"])]), paths) == ["set/b/good/0.png", "c/good/0.png"]
    assert places(PassImages([labelled(paths)]), paths) == ["b/test/good/0.png", "c/test/good/0.png"]


def test_place_is_the_path_in_the_folder_predicted_and_else_in_the_folder_of_all() -> None:
    paths = ["/day/line/0.png", "/day/line/deep/0.png"]
    assert places(PassImages([unlabelled(*paths)]), paths) == ["0.png", "deep/0.png"]
    assert places(PassImages([unlabelled(*paths)], "/day"), paths) == ["line/0.png", "line/deep/0.png"]


def test_image_that_no_data_set_has_named_goes_under_its_last_folder() -> None:
    assert places(PassImages([object()]), ["/somewhere/else/0.png"]) == ["else/0.png"]


def test_label_of_the_data_set_counts_before_that_of_the_batch_and_may_be_unknown() -> None:
    images = PassImages([labelled(["/a/0", "/a/1", "/a/2"], [0, 1, -1])], category="bolt")
    assert [images.defective(f"/a/{n}", told=True) for n in range(4)] == [False, True, None, True]
    assert images.category("/a/0") == images.category("/b/0") == "bolt"
