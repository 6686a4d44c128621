"""What MultiCategory says of missing, wrong and broken input."""

from __future__ import annotations

import pytest
from anomalib import TaskType
from layouts import FOLDER_ARGUMENTS, LAYOUTS, joined, make_tree

from anomalib_ccl.data import MultiCategory


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
    root.mkdir()

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
    (tmp_path / "set").mkdir()
    datamodule = MultiCategory("MVTecAD", tmp_path / "set")
    with pytest.raises(FileNotFoundError, match=r"MVTecAD is not complete under .*set .*no route to host"):
        datamodule.prepare_data()
