"""The subsets of MultiCategory: how categories are split, and what its batches hold."""

import logging

import pytest
import torch
from anomalib.data.utils import random_split
from layouts import FOLDER_ARGUMENTS, joined, make_tree
from noise import write_images
from torchvision.transforms.v2 import Compose, Lambda, Resize

from anomalib_ccl.data import MultiCategory


@pytest.mark.parametrize(
    ("arguments", "train", "val", "test"),
    [
        ({}, 4, 4, 4),
        ({"val_split_mode": "from_test", "val_split_ratio": 0.5}, 4, 2, 2),
        ({"val_split_mode": "from_train", "val_split_ratio": 0.25}, 3, 1, 4),
        ({"val_split_mode": "from_train", "val_split_ratio": 0.0}, 4, 0, 4),
        ({"val_split_mode": "from_test", "val_split_ratio": 0}, 4, 0, 4),
        ({"val_split_mode": "synthetic", "val_split_ratio": 0.0}, 4, 0, 4),
        ({"val_split_mode": "none"}, 4, 0, 4),
        ({"val_split_mode": "synthetic", "val_split_ratio": 0.5}, 2, 2, 4),
        ({"test_split_mode": "synthetic", "val_split_mode": "same_as_test"}, 4, 2, 2),
        ({"test_split_mode": "none"}, 4, 2, 2),
    ],
)
def test_split_arguments_apply_within_each_category(two_categories, arguments, train, val, test):
    datamodule = joined("MVTecAD", two_categories, **arguments)
    for loader, count in (
        (datamodule.train_dataloader(), train),
        (datamodule.val_dataloader(), val),
        (datamodule.test_dataloader(), test),
    ):
        assert sum(len(batch) for batch in loader) == 2 * count
        if count:
            samples = loader.dataset.samples
            assert samples.groupby("category").size().to_dict() == {"bottle": count, "cable": count}


@pytest.mark.parametrize(("ratio", "taken"), [(0.0, 0), (0.25, 1), (None, 1)])
def test_normal_test_images_are_taken_from_the_training_where_there_are_none(two_categories, ratio, taken):
    for path in two_categories.glob("*/test/good/*"):
        path.unlink()
    datamodule = joined("MVTecAD", two_categories, test_split_ratio=ratio)
    assert len(datamodule.train_data) == 2 * (4 - taken)
    assert datamodule.test_data.samples["label_index"].value_counts().get(0, 0) == 2 * taken


def test_data_set_arguments_win_over_the_shared_split_arguments(two_categories):
    other = {"val_split_ratio": 0.25}
    datamodule = MultiCategory(
        datasets=[
            {"dataset": "MVTecAD", "root": two_categories, "categories": ["bottle"]},
            {"dataset": "MPDD", "root": two_categories, "categories": ["cable"], "dataset_args": other},
        ],
        val_split_mode="from_train",
        val_split_ratio=0.5,
        num_workers=0,
    )
    datamodule.setup()
    assert datamodule.val_data.samples.groupby("category").size().to_dict() == {"MPDD/cable": 1, "MVTecAD/bottle": 2}


def test_training_batches_hold_two_categories(tmp_path, make_category):
    for name, count in (("bottle", 9), ("cable", 2), ("capsule", 1)):
        make_category(tmp_path, name, train=count)
    datamodule = joined("MVTecAD", tmp_path, train_batch_size=4)
    category_of = datamodule.train_data.samples.set_index("image_path")["category"]
    batches = [[category_of[path] for path in batch.image_path] for batch in datamodule.train_dataloader()]
    assert [len(set(batch)) > 1 for batch in batches] == [True] * 3


def test_seed_of_lightning_orders_the_training_images(two_categories, monkeypatch):
    def order(global_seed, seed=None):
        monkeypatch.setenv("PL_GLOBAL_SEED", global_seed)
        datamodule = MultiCategory("MVTecAD", two_categories, num_workers=0, seed=seed)
        datamodule.setup()
        return list(datamodule.train_dataloader().sampler)

    assert order("1") == order("1")
    assert order("1") != order("2")
    assert order("1", seed=3) == order("2", seed=3)


def test_augmentations_reach_the_images_and_masks_of_their_subset(two_categories):
    datamodule = joined(
        "MVTecAD",
        two_categories,
        train_augmentations=Compose([Resize((16, 16)), Lambda(torch.zeros_like)]),
        augmentations=Resize((8, 8)),
    )
    train = next(iter(datamodule.train_dataloader()))
    assert train.image.shape == (8, 3, 16, 16)
    assert train.image.max() == 0
    test = next(iter(datamodule.test_dataloader()))
    assert test.image.shape == (8, 3, 8, 8)
    assert test.gt_mask.shape == (8, 8, 8)
    assert test.image.max() > 0


def test_images_of_different_sizes_share_a_batch(tmp_path, make_category):
    make_category(tmp_path, "bottle", size=32)
    make_category(tmp_path, "cable", size=48)
    datamodule = joined("MVTecAD", tmp_path)
    assert next(iter(datamodule.train_dataloader())).image.shape == (8, 3, 48, 48)
    assert next(iter(datamodule.test_dataloader())).gt_mask.shape == (8, 48, 48)


def test_masks_of_some_categories_are_kept_where_others_have_none(tmp_path, caplog):
    make_tree("Folder", tmp_path / "masked")
    for name in ("apple", "zucchini"):
        write_images(tmp_path / "plain" / name / "good", 6)
        write_images(tmp_path / "plain" / name / "bad", 4)
    plain = {"normal_dir": "good", "abnormal_dir": "bad"}
    with caplog.at_level(logging.WARNING):
        datamodule = MultiCategory(
            datasets=[
                {"dataset": "Folder", "root": tmp_path / "plain", "dataset_args": plain},
                {"dataset": "Folder", "root": tmp_path / "masked", "dataset_args": FOLDER_ARGUMENTS},
            ],
            val_split_mode="same_as_test",
            eval_batch_size=3,
            num_workers=0,
        )
        datamodule.setup()
    assert "categories without masks: apple, zucchini" in caplog.text
    assert datamodule.test_data.task == "classification"
    category_of = datamodule.test_data.samples.set_index("image_path")["category"]
    kept = dict.fromkeys(datamodule.category_names, 0)
    for batch in datamodule.test_dataloader():
        assert batch.gt_label is not None
        for path in batch.image_path:
            kept[category_of[path]] += batch.gt_mask is not None
    assert kept["apple"] == kept["zucchini"] == 0
    masked = (datamodule.test_data.samples.category.str.contains("door")).sum()
    assert kept["left door"] + kept["right door"] == masked


def test_subsets_and_sums_read_the_right_images(two_categories):
    datamodule = joined("MVTecAD", two_categories, val_split_mode="synthetic")
    first, second = random_split(datamodule.test_data, 0.5, label_aware=True, seed=0)
    assert len(first) + len(second) == len(datamodule.test_data)
    total = first + datamodule.train_data + datamodule.val_data
    del first, second
    for index in range(len(total)):
        assert total[index].image_path == total.samples.image_path[index]
