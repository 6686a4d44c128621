"""MultiCategory against the datamodules that it joins, on tiny copies of their layouts."""

from __future__ import annotations

import csv
import json
import logging
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
from anomalib import TaskType
from anomalib import data as anomalib_data
from anomalib.data import AnomalibDataModule, get_datamodule
from anomalib.data.utils import random_split
from conftest import write_images
from omegaconf import OmegaConf
from torchvision.transforms.v2 import Compose, Lambda, Resize

from anomalib_ccl.data import MultiCategory

FOLDER_ARGUMENTS = {"normal_dir": "good", "abnormal_dir": "bad", "mask_dir": "masks"}


def mvtec(root: Path, name: str) -> None:
    write_images(root / name / "train" / "good", 4)
    write_images(root / name / "test" / "good", 2)
    write_images(root / name / "test" / "bad", 3)
    write_images(root / name / "ground_truth" / "bad", 3, suffix="_mask.png", mode="L")


def mvtec_ad_2(root: Path, name: str) -> None:
    write_images(root / name / "train" / "good", 4)
    write_images(root / name / "validation" / "good", 2)
    write_images(root / name / "test_public" / "good", 2)
    write_images(root / name / "test_public" / "bad", 3)
    write_images(root / name / "test_public" / "ground_truth" / "bad", 3, suffix="_mask.png", mode="L")


def mvtec_loco(root: Path, name: str) -> None:
    write_images(root / name / "train" / "good", 4)
    write_images(root / name / "validation" / "good", 2)
    write_images(root / name / "test" / "good", 2)
    write_images(root / name / "test" / "logical_anomalies", 2)
    for image in ("000", "001"):
        write_images(root / name / "ground_truth" / "logical_anomalies" / image, 2, mode="L")


def visa(root: Path, name: str) -> None:
    mvtec(root / "visa_pytorch", name)


def btech(root: Path, name: str) -> None:
    write_images(root / name / "train" / "ok", 4)
    write_images(root / name / "test" / "ok", 2)
    write_images(root / name / "test" / "ko", 3)
    write_images(root / name / "ground_truth" / "ko", 3, mode="L")


def auto_vi(root: Path, name: str) -> None:
    write_images(root / name / "train" / "good", 4)
    write_images(root / name / "test" / "good", 2)
    write_images(root / name / "test" / "loose", 2)
    for image in ("000", "001"):
        write_images(root / name / "ground_truth" / "loose" / image, 1, mode="L")
        (root / name / "ground_truth" / "loose" / image / "000.png").rename(
            root / name / "ground_truth" / "loose" / image / "0000.png"
        )


def bmad(root: Path, name: str) -> None:
    write_images(root / name / "train" / "good", 4)
    for split in ("valid", "test"):
        write_images(root / name / split / "good" / "img", 2)
        write_images(root / name / split / "Ungood" / "img", 3)
        write_images(root / name / split / "Ungood" / "label", 3, mode="L")


def real_iad(root: Path, name: str) -> None:
    folder = root / "realiad_256" / name
    write_images(folder / "OK", 6)
    write_images(folder / "NG", 3)
    write_images(folder / "masks", 3, mode="L")
    good = [{"image_path": f"OK/{i:03}.png", "anomaly_class": "OK"} for i in range(6)]
    bad = [{"image_path": f"NG/{i:03}.png", "mask_path": f"masks/{i:03}.png", "anomaly_class": "AK"} for i in range(3)]
    table = root / "realiad_jsons" / "realiad_jsons" / f"{name}.json"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(json.dumps({"train": good[:4], "test": good[4:] + bad}))


def folder(root: Path, name: str) -> None:
    write_images(root / name / "good", 6)
    write_images(root / name / "bad", 4)
    write_images(root / name / "masks", 4, mode="L")


LAYOUTS = {
    "MVTecAD": (mvtec, ["bottle", "cable"]),
    "MVTecAD2": (mvtec_ad_2, ["can", "vial"]),
    "MVTecLOCO": (mvtec_loco, ["juice_bottle", "pushpins"]),
    "Visa": (visa, ["candle", "pcb1"]),
    "BTech": (btech, ["01", "02"]),
    "MPDD": (mvtec, ["bracket_black", "tubes"]),
    "VAD": (mvtec, ["vad"]),
    "RealIAD": (real_iad, ["audiojack", "pcb"]),
    "AutoVI": (auto_vi, ["pipe_clip", "tank_screw"]),
    "BMAD": (bmad, ["Brain", "Chest"]),
    "Folder": (folder, ["left door", "right door"]),
}


def make_tree(dataset: str, root: Path) -> list[str]:
    """Make the data set's layout under ``root``; the names of its categories."""
    make, names = LAYOUTS[dataset]
    for name in names:
        make(root, name)
    return names


def own_datamodule(dataset: str, root: Path, name: str) -> AnomalibDataModule:
    """anomalib's datamodule of one category, set up."""
    datamodule_class = getattr(anomalib_data, dataset)
    if dataset == "Folder":
        own = datamodule_class(name=name, root=root / name, seed=7, num_workers=0, **FOLDER_ARGUMENTS)
    else:
        own = datamodule_class(root=root, category=name, seed=7, num_workers=0)
    own.prepare_data()
    # MVTecAD2, MVTecLOCO and AutoVI of anomalib 2.7 fail with the string type of pandas 3.
    with warnings.catch_warnings(), pd.option_context("future.infer_string", False):
        own.setup()
    return own


def joined(dataset: str, root: Path, **arguments: object) -> MultiCategory:
    """MultiCategory over one data set, set up."""
    if dataset == "Folder":
        arguments.setdefault("dataset_args", FOLDER_ARGUMENTS)
    datamodule = MultiCategory(dataset, root, num_workers=0, seed=7, **arguments)
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def images(loader, category: str | None = None) -> list[str]:
    samples = loader.dataset.samples
    return sorted(samples[samples.category == category].image_path if category else samples.image_path)


@pytest.fixture
def two_categories(tmp_path, make_category) -> Path:
    make_category(tmp_path / "set", "bottle")
    make_category(tmp_path / "set", "cable")
    return tmp_path / "set"


@pytest.mark.parametrize("dataset", LAYOUTS)
def test_each_category_has_the_images_that_its_own_datamodule_gives(dataset, tmp_path):
    names = make_tree(dataset, tmp_path)
    datamodule = joined(dataset, tmp_path)
    assert datamodule.category_names == names
    for name in names:
        own = own_datamodule(dataset, tmp_path, name)
        for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
            expected = images(getattr(own, loader)())
            assert len(expected) > 0
            assert images(getattr(datamodule, loader)(), name) == expected


@pytest.mark.parametrize("dataset", LAYOUTS)
def test_items_are_those_that_the_own_data_set_reads(dataset, tmp_path):
    # MVTecLOCO, for one, reads several masks for an image in a __getitem__ of its own.
    name = make_tree(dataset, tmp_path)[0]
    own = own_datamodule(dataset, tmp_path, name).test_dataloader().dataset
    expected = {item.image_path: item for item in own}
    test_data = joined(dataset, tmp_path, categories=[name]).test_data
    assert len(test_data) == len(expected)
    for index in range(len(test_data)):
        item = test_data[index]
        assert item.image_path == test_data.samples.image_path[index]
        torch.testing.assert_close(item.image, expected[item.image_path].image)
        torch.testing.assert_close(item.gt_mask, expected[item.image_path].gt_mask)
        assert item.gt_label == expected[item.image_path].gt_label


def test_kaputt_materials_are_categories(tmp_path):
    pytest.importorskip("pyarrow")
    names = ["cardboard", "paper"]
    for split in ("train", "validation", "test"):
        rows = []
        for name in names:
            folder_name = f"data/{split}/{name}"
            write_images(tmp_path / "query-image" / folder_name, 4)
            write_images(tmp_path / "query-mask" / folder_name, 4, mode="L")
            rows += [
                {
                    "capture_id": f"{name} {i}",
                    "item_material": name,
                    "defect": split != "train" and i > 1,
                    "defect_types": "",
                    "query_image": f"{folder_name}/{i:03}.png",
                    "query_mask": f"{folder_name}/{i:03}.png",
                }
                for i in range(4)
            ]
        (tmp_path / "datasets").mkdir(exist_ok=True)
        pd.DataFrame(rows).to_parquet(tmp_path / "datasets" / f"query-{split}.parquet")
    datamodule = joined("Kaputt", tmp_path, categories=names)
    assert datamodule.train_data.samples.groupby("category").size().to_dict() == {"cardboard": 4, "paper": 4}


def test_raw_visa_is_split_by_anomalib_first(tmp_path):
    rows = []
    for name in ("candle", "pcb1"):
        data = tmp_path / name / "Data"
        write_images(data / "Images" / "Normal", 4)
        write_images(data / "Images" / "Anomaly", 2)
        write_images(data / "Masks" / "Anomaly", 2, mode="L")
        where = f"{name}/Data/Images"
        rows += [[name, "train", "normal", f"{where}/Normal/{i:03}.png", ""] for i in range(3)]
        rows += [[name, "test", "normal", f"{where}/Normal/003.png", ""]]
        rows += [
            [name, "test", "anomaly", f"{where}/Anomaly/{i:03}.png", f"{name}/Data/Masks/Anomaly/{i:03}.png"]
            for i in range(2)
        ]
    (tmp_path / "split_csv").mkdir()
    with (tmp_path / "split_csv" / "1cls.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["object", "split", "label", "image", "mask"], *rows])
    datamodule = joined("Visa", tmp_path)
    assert datamodule.category_names == ["candle", "pcb1"]
    assert datamodule.train_data.samples.groupby("category").size().to_dict() == {"candle": 3, "pcb1": 3}
    assert datamodule.test_data.samples.groupby("category").size().to_dict() == {"candle": 3, "pcb1": 3}


def test_categories_that_are_named_are_used_alone_and_sorted(two_categories, make_category):
    make_category(two_categories, "zipper")
    (two_categories / "licence").mkdir()
    assert joined("MVTecAD", two_categories).category_names == ["bottle", "cable", "zipper"]
    some = joined("MVTecAD", two_categories, categories=["zipper", "bottle"])
    assert some.category_names == ["bottle", "zipper"]
    assert set(some.train_data.samples.category) == {"bottle", "zipper"}


def test_every_path_in_a_batch_leads_to_its_category(two_categories, monkeypatch):
    monkeypatch.chdir(two_categories.parent)
    (two_categories.parent / "link").symlink_to(two_categories)
    for root in ("set", "./link"):
        datamodule = joined("MVTecAD", root)
        for loader in (datamodule.train_dataloader(), datamodule.test_dataloader()):
            category_of = loader.dataset.samples.set_index("image_path")["category"]
            for batch in loader:
                for path in batch.image_path:
                    assert f"/{category_of[path]}/" in path


def test_plain_yaml_values_build_it_as_the_benchmark_does(two_categories, tmp_path):
    make_tree("Folder", tmp_path / "doors")
    config = OmegaConf.create(
        f"""
        class_path: MultiCategory
        init_args:
          num_workers: 0
          datasets:
            - dataset: MVTecAD
              root: {two_categories}
              categories: [cable]
            - dataset: Folder
              root: {tmp_path / "doors"}
              dataset_args: {{normal_dir: good, abnormal_dir: [bad], mask_dir: [masks], val_split_mode: none}}
        """
    )
    datamodule = get_datamodule(config)
    datamodule.prepare_data()
    datamodule.setup()
    assert datamodule.category_names == ["Folder/left door", "Folder/right door", "MVTecAD/cable"]
    assert datamodule.name == "MultiCategory"
    assert datamodule.category == ""


def test_configuration_file_builds_it(two_categories, tmp_path):
    config = tmp_path / "data.yaml"
    config.write_text(
        f"class_path: anomalib_ccl.data.MultiCategory\n"
        f"init_args: {{dataset: MVTecAD, root: {two_categories}, categories: [cable], num_workers: 0}}\n"
    )
    datamodule = AnomalibDataModule.from_config(config)
    datamodule.setup()
    assert datamodule.category_names == ["cable"]


def test_one_name_in_two_data_sets_is_two_categories(tmp_path, make_category):
    make_category(tmp_path / "ad", "toothbrush")
    real_iad(tmp_path / "real", "toothbrush")
    datamodule = MultiCategory(
        datasets=[
            {"dataset": "MVTecAD", "root": tmp_path / "ad"},
            {"dataset": "RealIAD", "root": tmp_path / "real", "dataset_args": {"resolution": 256}},
        ],
        num_workers=0,
    )
    datamodule.prepare_data()
    datamodule.setup()
    assert datamodule.category_names == ["MVTecAD/toothbrush", "RealIAD/toothbrush"]


@pytest.mark.parametrize(
    ("arguments", "train", "val", "test"),
    [
        ({}, 4, 4, 4),
        ({"val_split_mode": "from_test", "val_split_ratio": 0.5}, 4, 2, 2),
        ({"val_split_mode": "from_train", "val_split_ratio": 0.25}, 3, 1, 4),
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
        samples = loader.dataset.samples
        assert samples.groupby("category").size().to_dict() == {"bottle": count, "cable": count}
        assert sum(len(batch) for batch in loader) == 2 * count


def test_no_validation_split_gives_no_validation_batches(two_categories):
    assert len(joined("MVTecAD", two_categories, val_split_mode="none").val_dataloader()) == 0


def test_data_set_arguments_win_over_the_shared_split_arguments(two_categories):
    datamodule = MultiCategory(
        datasets=[
            {"dataset": "MVTecAD", "root": two_categories, "categories": ["bottle"]},
            {
                "dataset": "MPDD",
                "root": two_categories,
                "categories": ["cable"],
                "dataset_args": {"val_split_ratio": 0.25},
            },
        ],
        val_split_mode="from_train",
        val_split_ratio=0.5,
        num_workers=0,
    )
    datamodule.setup()
    assert datamodule.val_data.samples.groupby("category").size().to_dict() == {
        "MPDD/cable": 1,
        "MVTecAD/bottle": 2,
    }


def test_training_batches_hold_two_categories_and_a_pair(tmp_path, make_category):
    for name, count in (("bottle", 9), ("cable", 2), ("capsule", 1)):
        make_category(tmp_path, name, train=count)
    datamodule = joined("MVTecAD", tmp_path, train_batch_size=4)
    category_of = datamodule.train_data.samples.set_index("image_path")["category"]
    batches = [[category_of[path] for path in batch.image_path] for batch in datamodule.train_dataloader()]
    assert len(batches) == 3
    for batch in batches:
        assert 2 <= len(set(batch)) < len(batch)


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
    assert "categories without masks: Folder/apple, Folder/zucchini" in caplog.text
    assert datamodule.test_data.task == "classification"
    category_of = datamodule.test_data.samples.set_index("image_path")["category"]
    kept = dict.fromkeys(datamodule.category_names, 0)
    for batch in datamodule.test_dataloader():
        assert batch.gt_label is not None
        for path in batch.image_path:
            kept[category_of[path]] += batch.gt_mask is not None
    assert kept["Folder/apple"] == kept["Folder/zucchini"] == 0
    # Only the one batch in which the two kinds meet loses its masks.
    masked = (datamodule.test_data.samples.category.str.contains("door")).sum()
    assert masked - 3 < kept["Folder/left door"] + kept["Folder/right door"] <= masked


def test_subsets_and_sums_read_the_right_images(two_categories):
    datamodule = joined("MVTecAD", two_categories, val_split_mode="synthetic")
    first, second = random_split(datamodule.test_data, 0.5, label_aware=True, seed=0)
    assert len(first) + len(second) == len(datamodule.test_data)
    total = first + datamodule.train_data + datamodule.val_data
    del first, second
    for index in range(len(total)):
        assert total[index].image_path == total.samples.image_path[index]


def test_missing_normal_test_images_are_pointed_out(tmp_path, caplog):
    make_tree("RealIAD", tmp_path)
    with caplog.at_level(logging.WARNING):
        joined("RealIAD", tmp_path, test_split_mode="from_dir")
        assert "No normal test images" not in caplog.text
        joined("RealIAD", tmp_path)
    assert "audiojack, pcb" in caplog.text
    assert "test_split_mode='from_dir'" in caplog.text


def test_unknown_data_set_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"dataset 'MVTec' is unknown; choose one of AutoVI, .*MVTecAD, "):
        MultiCategory("MVTec")


@pytest.mark.parametrize("step", ["prepare_data", "setup"])
def test_unknown_category_is_named_with_those_on_disk(two_categories, step):
    datamodule = MultiCategory("MVTecAD", two_categories, categories=["botle"])
    with pytest.raises(ValueError, match=r"category 'botle' not found under .*set; found bottle, cable"):
        getattr(datamodule, step)()


@pytest.mark.parametrize("dataset", ["MVTecAD", "Folder"])
def test_root_without_categories_is_named_with_the_layout_and_nothing_is_downloaded(dataset, two_categories):
    arguments = FOLDER_ARGUMENTS if dataset == "Folder" else None
    wrong = two_categories.parent
    datamodule = MultiCategory(dataset, wrong, dataset_args=arguments)
    inside = "good" if dataset == "Folder" else "train"
    for step in (datamodule.prepare_data, datamodule.setup):
        with pytest.raises(FileNotFoundError, match=rf"there is no folder {wrong}/<category>/{inside}"):
            step()
    assert [path.name for path in wrong.iterdir()] == ["set"]


@pytest.mark.parametrize("dataset", LAYOUTS)
def test_empty_category_is_named_with_its_folder(dataset, tmp_path):
    names = make_tree(dataset, tmp_path)
    train = {"BTech": "train/ok", "RealIAD": "OK", "Folder": "good"}.get(dataset, "train/good")
    for path in tmp_path.glob(f"**/{names[0]}/{train}/*"):
        path.unlink()
    with pytest.raises(ValueError, match=rf"category '{names[0]}' of {dataset} in {tmp_path}.*{names[0]} "):
        joined(dataset, tmp_path)


def test_category_that_its_datamodule_refuses_is_named_with_the_reason(two_categories):
    next((two_categories / "cable" / "ground_truth" / "bad").iterdir()).unlink()
    with pytest.raises(ValueError, match=r"category 'cable' of MVTecAD in .*cable cannot be set up: .+"):
        joined("MVTecAD", two_categories)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("broken", ["image", "mask"])
def test_unreadable_file_stops_the_epoch_with_its_path(two_categories, broken, num_workers):
    image = two_categories / "bottle" / "test" / "bad" / "001.png"
    path = image if broken == "image" else two_categories / "bottle" / "ground_truth" / "bad" / "001_mask.png"
    path.write_bytes(path.read_bytes()[:60])
    datamodule = joined("MVTecAD", two_categories)
    datamodule.num_workers = num_workers
    with pytest.raises(OSError, match=f"cannot read image {image} or its mask: .*; repair or remove it"):
        list(datamodule.test_dataloader())


def test_unreadable_files_are_skipped_with_a_warning_where_asked_for(two_categories, caplog):
    broken = {
        "train/good/001.png": lambda data: data[:60],
        "train/good/002.png": lambda _: b"no image",
        "test/good/000.png": lambda data: data[: len(data) // 2],
        "ground_truth/bad/001_mask.png": lambda _: b"",
    }
    for name, spoil in broken.items():
        path = two_categories / "bottle" / name
        path.write_bytes(spoil(path.read_bytes()))
    datamodule = joined("MVTecAD", two_categories, skip_corrupt=True, train_batch_size=3)

    skipped = {"train/good/001.png", "train/good/002.png", "test/good/000.png", "test/bad/001.png"}
    assert len(caplog.messages) == len(skipped)
    assert all(any(f"{two_categories}/bottle/{name}: " in text for text in caplog.messages) for name in skipped)
    assert datamodule.test_data.task == TaskType.SEGMENTATION
    for split, loader in (
        ("train", datamodule.train_dataloader()),
        ("test", datamodule.test_dataloader()),
        ("test", datamodule.val_dataloader()),
    ):
        seen = {path for batch in loader for path in batch.image_path}
        present = {str(path) for path in two_categories.glob(f"*/{split}/*/*.png")}
        assert seen == present - {f"{two_categories}/bottle/{name}" for name in skipped}


def test_category_without_a_readable_training_image_is_refused(two_categories):
    for path in two_categories.glob("cable/train/good/*"):
        path.write_text("no image")
    with pytest.raises(ValueError, match="cannot read any training image of cable"):
        joined("MVTecAD", two_categories, skip_corrupt=True)


def test_arguments_that_a_data_set_does_not_take_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"MVTecAD does not take resolution; it takes .*test_split_mode"):
        MultiCategory("MVTecAD", tmp_path, dataset_args={"resolution": 256})
    with pytest.raises(ValueError, match=r"MVTecAD2 does not take val_split_mode"):
        MultiCategory("MVTecAD2", tmp_path, val_split_mode="from_test")
    with pytest.raises(ValueError, match=r"Folder needs the root .* normal_dir"):
        MultiCategory("Folder", tmp_path)


def test_entries_of_the_joint_setting_are_checked(two_categories):
    with pytest.raises(ValueError, match=r"entry of datasets has the keys dataset, root, .*'category'"):
        MultiCategory(datasets=[{"dataset": "MVTecAD", "category": "bottle"}])
    with pytest.raises(ValueError, match="put root, categories and dataset_args into its entries"):
        MultiCategory(root=two_categories, datasets=["MVTecAD"])
    twice = {"dataset": "MVTecAD", "root": two_categories}
    with pytest.raises(ValueError, match="category 'MVTecAD/bottle' is in two entries"):
        MultiCategory(datasets=[twice, twice]).setup()


def test_empty_root_is_filled_by_the_download_of_anomalib(tmp_path, make_category, monkeypatch):
    root = tmp_path / "set"

    def download(target, info):
        assert (target, info.name) == (root, "mvtecad")
        for name in ("bottle", "cable"):
            make_category(target, name)

    monkeypatch.setattr("anomalib.data.datamodules.image.mvtecad.download_and_extract", download)
    datamodule = MultiCategory("MVTecAD", root, categories=["bottle", "cable"], num_workers=0)
    datamodule.prepare_data()
    datamodule.setup()
    assert datamodule.category_names == ["bottle", "cable"]


def test_failed_download_is_told_with_root_and_cause(tmp_path, monkeypatch):
    def download(target, info):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("anomalib.data.datamodules.image.mvtecad.download_and_extract", download)
    datamodule = MultiCategory("MVTecAD", tmp_path / "set")
    with pytest.raises(FileNotFoundError, match=r"MVTecAD is not complete under .*set .*no route to host"):
        datamodule.prepare_data()
