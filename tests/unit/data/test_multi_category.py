"""MultiCategory against the datamodules that it joins, on tiny copies of their layouts."""

from __future__ import annotations

import csv

import pandas as pd
import pytest
import torch
from anomalib.data import AnomalibDataModule, get_datamodule
from conftest import write_images
from layouts import LAYOUTS, images, joined, make_tree, own_datamodule, real_iad
from omegaconf import OmegaConf

from anomalib_ccl.data import MultiCategory


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


def test_raw_visa_is_split_by_its_table_without_a_copy(tmp_path):
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
    assert datamodule.test_data.task == "segmentation"
    assert not (tmp_path / "visa_pytorch").exists()


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
