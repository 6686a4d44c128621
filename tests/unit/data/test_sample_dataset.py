"""The sample data set: layout, masks, and what happens when it is made twice."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalib_ccl.data import MultiCategory, make_sample_dataset
from anomalib_ccl.data.defects import DEFECTS
from anomalib_ccl.data.sample import PRODUCTS

REPOSITORY = Path(__file__).parents[3]
TINY = {"size": 32, "train": 2, "test_good": 1, "per_defect": 1}


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_one_seed_gives_identical_bytes_and_another_seed_gives_other_images(tmp_path):
    first = contents(make_sample_dataset(tmp_path / "first", seed=5, **TINY))
    second = contents(make_sample_dataset(tmp_path / "second", seed=5, **TINY))
    other = contents(make_sample_dataset(tmp_path / "other", seed=6, **TINY))
    assert first == second
    assert first.keys() == other.keys()
    assert all(first[path] != other[path] for path in first if "ground_truth" not in path.parts)


def test_layout_is_that_of_mvtec_ad(sample_root):
    datamodule = MultiCategory("MVTecAD", sample_root, num_workers=0)
    datamodule.setup()
    assert datamodule.category_names == sorted(PRODUCTS)
    assert datamodule.train_data.samples["category"].value_counts().to_dict() == dict.fromkeys(PRODUCTS, 6)
    test = datamodule.test_data.samples
    assert test.groupby("category")["label_index"].sum().to_dict() == dict.fromkeys(PRODUCTS, len(DEFECTS))
    assert test.groupby("category").size().to_dict() == dict.fromkeys(PRODUCTS, 2 + len(DEFECTS))


def test_grey_and_colour_categories_exist(sample_root):
    modes = {name: Image.open(sample_root / name / "train" / "good" / "000.png").mode for name in PRODUCTS}
    assert {name for name, mode in modes.items() if mode == "L"} == {
        "brick",
        "grass",
        "gravel_coarse",
        "gravel_fine",
    }
    assert {name for name, mode in modes.items() if mode == "RGB"} == {"retina", "tissue"}


def test_masks_are_black_and_white_and_show_a_small_defect(sample_root):
    masks = sorted(sample_root.glob("*/ground_truth/*/*_mask.png"))
    assert len(masks) == len(PRODUCTS) * len(DEFECTS)
    for path in masks:
        mask = np.asarray(Image.open(path))
        assert mask.shape == (64, 64)
        assert set(np.unique(mask)) == {0, 255}
        assert 0.001 < (mask > 0).mean() < 0.25


@pytest.mark.parametrize("kind", DEFECTS)
@pytest.mark.parametrize("severity", [0.1, 1.0])
def test_defect_changes_the_image_inside_its_mask_and_nowhere_else(kind, severity):
    generator = np.random.default_rng(0)
    image, other = generator.uniform(0.3, 0.7, (2, 64, 64, 3))
    defective, mask = DEFECTS[kind](image, other, severity, generator)
    changed = (defective != image).any(-1)
    np.testing.assert_array_equal(changed, mask)
    assert defective.min() >= 0
    assert defective.max() <= 1


@pytest.mark.parametrize("kind", sorted(set(DEFECTS) - {"scratch", "stain"}))
def test_brightness_does_not_give_the_defect_away(kind):
    generator = np.random.default_rng(0)
    image, other = generator.uniform(0.3, 0.7, (64, 64, 1)), generator.uniform(0.0, 0.3, (64, 64, 1))
    defective, mask = DEFECTS[kind](image, other, 1.0, generator)
    assert abs(defective[mask].mean() - image[mask].mean()) < 0.02


def test_training_and_test_parts_of_a_photograph_do_not_overlap():
    # Across categories too: the look-alikes share a photograph.
    def overlap(a, b):
        return max(a[0], b[0]) < min(a[2], b[2]) and max(a[1], b[1]) < min(a[3], b[3])

    products = list(PRODUCTS.values())
    for a, b in [*combinations(products, 2), *zip(products, products, strict=True)]:
        if a.photograph == b.photograph:
            assert not overlap(a.train, b.test)
            assert not overlap(b.train, a.test)


def test_second_call_reuses_the_set(tmp_path):
    root = make_sample_dataset(tmp_path / "set", **TINY)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}
    assert make_sample_dataset(root, **TINY) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.png")} == before


def test_folder_with_another_set_or_other_files_is_refused_and_left_alone(tmp_path):
    root = make_sample_dataset(tmp_path / "set", **TINY)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.jpg").write_bytes(b"")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"set is not empty .*'seed': 1.*name another folder"):
        make_sample_dataset(root, seed=1, **TINY)
    with pytest.raises(FileExistsError, match="photos is not empty"):
        make_sample_dataset(photos, **TINY)
    assert contents(tmp_path) == before


def test_set_can_be_made_in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_sample_dataset(".", **TINY)
    assert {path.name for path in tmp_path.iterdir()} == {*PRODUCTS, "sample.json"}


@pytest.mark.slow
def test_command_line_makes_the_default_set(tmp_path):
    root = tmp_path / "set"
    made = run_command_line(root, "--seed", "1")
    assert made.returncode == 0
    assert str(root) in made.stdout
    assert len(list(root.glob("*/train/good/*.png"))) == 48 * len(PRODUCTS)
    assert Image.open(root / "brick" / "train" / "good" / "000.png").size == (256, 256)


@pytest.mark.slow
def test_command_line_refuses_a_full_folder_without_a_traceback(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"")
    refused = run_command_line(tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: {tmp_path} is not empty")
    assert "Traceback" not in refused.stderr


def run_command_line(*arguments):
    command = [sys.executable, "-m", "anomalib_ccl.data", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
