"""The sample data set: layout, masks, and what happens when it is made twice."""

from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from anomalib_ccl.data import MultiCategory, make_sample_dataset
from anomalib_ccl.data.sample import DEFECTS, PRODUCTS
from anomalib_ccl.errors import InputError

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
    test = datamodule.test_data.samples.groupby("category")["label_index"]
    assert test.sum().to_dict() == dict.fromkeys(PRODUCTS, len(DEFECTS))
    assert test.size().to_dict() == dict.fromkeys(PRODUCTS, 2 + len(DEFECTS))


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


def test_training_and_test_parts_of_a_photograph_do_not_overlap():
    # Across categories too: the look-alikes share a photograph.
    def overlap(a, b):
        return max(a[0], b[0]) < min(a[2], b[2]) and max(a[1], b[1]) < min(a[3], b[3])

    products = list(PRODUCTS.values())
    for a, b in [*combinations(products, 2), *zip(products, products, strict=True)]:
        if a.photograph == b.photograph:
            assert not overlap(a.train, b.test)
            assert not overlap(b.train, a.test)


def test_folder_with_another_set_or_other_files_is_refused_and_left_alone(tmp_path):
    root = make_sample_dataset(tmp_path / "set", **TINY)
    before = contents(tmp_path)
    assert make_sample_dataset(root, **TINY) == root
    with pytest.raises(InputError, match=r"set is there and does not hold .*'seed': 1.*name another folder"):
        make_sample_dataset(root, seed=1, **TINY)
    with pytest.raises(InputError, match=f"{root}/brick is there and does not hold"):
        make_sample_dataset(root / "brick", **TINY)
    assert contents(tmp_path) == before


def test_command_line_makes_the_set_and_refuses_a_full_folder_without_a_traceback(run, tmp_path):
    command = ["python", "-m", "anomalib_ccl.data", tmp_path / "set", "--seed", "1", "--train", "1"]
    assert run(*command, cwd=tmp_path).returncode == 0
    assert Image.open(tmp_path / "set/brick/train/good/000.png").size == (256, 256)
    refused = run(*command[:4], cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: {tmp_path}/set is there and does not hold")
