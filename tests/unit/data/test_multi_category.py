"""MultiCategory against the datamodules that it joins, on tiny copies of their layouts."""

import miniatures
import pytest
import torch
from anomalib.data import get_datamodule
from layouts import LAYOUTS, images, joined, make_tree, own_datamodule
from omegaconf import OmegaConf


@pytest.mark.parametrize("dataset", LAYOUTS)
def test_each_category_has_the_images_and_items_of_its_own_datamodule(dataset, tmp_path):
    names = make_tree(dataset, tmp_path)
    datamodule = joined(dataset, tmp_path)
    assert datamodule.category_names == names
    expected = {}
    for name in names:
        own = own_datamodule(dataset, tmp_path, name)
        expected |= {item.image_path: item for item in own.test_dataloader().dataset}
        for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
            of_own = images(getattr(own, loader)())
            assert len(of_own) > 0
            assert images(getattr(datamodule, loader)(), name) == of_own
    # MVTecLOCO, for one, reads several masks for an image in a __getitem__ of its own.
    for index, path in enumerate(datamodule.test_data.samples["image_path"]):
        item = datamodule.test_data[index]
        assert item.image_path == path
        torch.testing.assert_close(item.image, expected[path].image)
        torch.testing.assert_close(item.gt_mask, expected[path].gt_mask)
        assert item.gt_label == expected[path].gt_label


def test_raw_visa_is_split_by_anomalib(tmp_path):
    miniatures.visa(tmp_path, ["candle", "pcb1"])
    datamodule = joined("Visa", tmp_path)
    assert datamodule.category_names == ["candle", "pcb1"]
    assert datamodule.train_data.samples.groupby("category").size().to_dict() == {"candle": 2, "pcb1": 2}
    assert datamodule.test_data.samples.groupby("category")["label_index"].sum().to_dict() == {"candle": 1, "pcb1": 1}
    assert datamodule.test_data.task == "segmentation"


def test_categories_that_are_named_are_used_alone_and_sorted(two_categories, make_category):
    make_category(two_categories, "zipper")
    (two_categories / "licence").mkdir()
    assert joined("MVTecAD", two_categories).category_names == ["bottle", "cable", "zipper"]
    assert joined("MVTecAD", two_categories, categories="zipper").category_names == ["zipper"]
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
