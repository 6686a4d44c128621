"""What MultiCategory says of missing, wrong and broken input."""

import pytest
from anomalib import TaskType
from layouts import FOLDER_ARGUMENTS, LAYOUTS, joined, make_tree

from anomalib_ccl.data import MultiCategory
from anomalib_ccl.errors import InputError

FOLDER = {"dataset": "Folder", "root": "."}


def fail(*args: object) -> None:
    raise ConnectionError("no route to host")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "MVTec"}, r"dataset 'MVTec' is unknown; did you mean MVTecAD\? There are AutoVI, .*MVTecAD, "),
        ({"dataset_args": {"resolution": 256}}, r"MVTecAD does not take resolution; it takes .*test_split_mode"),
        ({"dataset": "MVTecAD2", "val_split_mode": "from_test"}, r"MVTecAD2 does not take val_split_mode"),
        ({"dataset": "Folder", "root": "."}, r"Folder needs the root .* normal_dir"),
        ({"val_split_mode": "half"}, r"MVTecAD refuses its arguments: 'half'"),
        ({"val_split_ratio": 1.5}, r"val_split_ratio 1.5 is not a part of the images"),
        ({"test_split_ratio": -0.1}, r"test_split_ratio -0.1 is not a part of the images"),
        (
            {"datasets": [{"dataset": "MVTecAD", "category": "x"}]},
            r"entry of datasets has the keys dataset, .*'category'",
        ),
        ({"datasets": ["MVTecAD"], "root": "."}, "with root, categories and dataset_args in its entries"),
        ({"datasets": []}, "datasets names one or more"),
        ({"datasets": [3]}, r"entry of datasets has the keys dataset, .*got 3"),
        ({"datasets": "MVTec"}, r"dataset 'MVTec' is unknown; did you mean MVTecAD"),
        ({"dataset_args": ["good"]}, r"dataset_args are names with values, .*; got \['good'\]"),
        ({"dataset_args": {"num_workers": 1}}, r"MVTecAD does not take num_workers; it takes seed, test_split_mode"),
        ({"test_split_ratio": "half"}, r"test_split_ratio half is not a part of the images"),
        ({"train_batch_size": 0}, "train_batch_size 0 is no whole number from 1 on"),
        ({"seed": -1}, "seed -1 is no whole number from 0 on"),
        *[
            ({**FOLDER, "dataset_args": {**FOLDER_ARGUMENTS, key: value}}, message)
            for key, value, message in (
                ("normal_dir", "", "normal_dir '' is no folder inside that of each category, such as good"),
                ("normal_dir", ["good", "."], "normal_dir '.' is no folder"),
                ("abnormal_dir", "../bad", "abnormal_dir '../bad' is no folder"),
                ("mask_dir", "/masks", "mask_dir '/masks' is no folder"),
                ("extensions", [".png", "jpg"], r"extension 'jpg' is not one of images that are read: \.jpg, \.jpeg"),
                ("extensions", ".gif", "extension '.gif' is not one"),
            )
        ],
    ],
)
def test_wrong_arguments_are_named_before_anything_is_read(arguments, message):
    with pytest.raises(InputError, match=message):
        MultiCategory(**arguments)


@pytest.mark.parametrize(
    ("name", "choice"),
    [("botle", r"did you mean bottle\? Found"), ("Bottle", r"did you mean bottle\? Found"), ("x", "found")],
)
def test_unknown_category_is_named_with_those_on_disk_before_a_run(two_categories, name, choice):
    with pytest.raises(InputError, match=rf"category '{name}' not found under .*set; {choice} bottle, cable$"):
        MultiCategory("MVTecAD", two_categories, categories=[name])


@pytest.mark.parametrize("dataset", ["MVTecAD", "Folder"])
def test_root_without_categories_is_named_with_the_layout_and_nothing_is_downloaded(dataset, two_categories):
    arguments = FOLDER_ARGUMENTS if dataset == "Folder" else None
    wrong = two_categories.parent
    inside = "good" if dataset == "Folder" else "train"
    with pytest.raises(InputError, match=rf"there is no folder {wrong}/<category>/{inside}"):
        MultiCategory(dataset, wrong, dataset_args=arguments)
    assert [path.name for path in wrong.iterdir()] == ["set"]


@pytest.mark.parametrize("dataset", LAYOUTS)
def test_empty_category_is_named_with_its_folder(dataset, tmp_path):
    names = make_tree(dataset, tmp_path)
    train = {"BTech": "train/ok", "RealIAD": "OK", "Folder": "good"}.get(dataset, "train/good")
    for path in tmp_path.glob(f"**/{names[0]}/{train}/*"):
        path.unlink()
    with pytest.raises(InputError, match=rf"category '{names[0]}' of {dataset} in {tmp_path}.*{names[0]} "):
        joined(dataset, tmp_path)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("broken", ["image", "mask"])
def test_unreadable_file_stops_the_epoch_with_its_path(two_categories, broken, num_workers):
    image = two_categories / "bottle" / "test" / "bad" / "001.png"
    path = image if broken == "image" else two_categories / "bottle" / "ground_truth" / "bad" / "001_mask.png"
    path.write_bytes(path.read_bytes()[:60])
    datamodule = joined("MVTecAD", two_categories)
    datamodule.num_workers = num_workers
    with pytest.raises(InputError, match=f"cannot read {broken} {path}: .*; repair or remove it"):
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
    for split, name in (("train", "train"), ("test", "test"), ("test", "val")):
        loader = getattr(datamodule, f"{name}_dataloader")()
        seen = {path for batch in loader for path in batch.image_path}
        present = {str(path) for path in two_categories.glob(f"*/{split}/*/*.png")}
        assert seen == present - {f"{two_categories}/bottle/{name}" for name in skipped}


def test_unreadable_test_images_count_for_no_figure(two_categories, caplog):
    for path in two_categories.glob("cable/test/good/*"):
        path.write_text("no image")
    joined("MVTecAD", two_categories, skip_corrupt=True, test_split_mode="from_dir")
    assert caplog.messages[-1] == "No normal test images, so no AUROC of their own, in cable"


def test_category_without_a_readable_training_image_is_refused(two_categories):
    for path in two_categories.glob("cable/train/good/*"):
        path.write_text("no image")
    with pytest.raises(InputError, match="cannot read any training image of cable"):
        joined("MVTecAD", two_categories, skip_corrupt=True)


def test_category_that_is_in_two_entries_and_a_failed_download_are_named(two_categories, tmp_path, monkeypatch):
    twice = {"dataset": "MVTecAD", "root": two_categories}
    with pytest.raises(InputError, match="category 'MVTecAD/bottle' is in two entries"):
        MultiCategory(datasets=[twice, twice]).setup()
    of_images = r"image .*/000.png is among the test images of MVTecAD/bottle and again among .* of MPDD/bottle"
    with pytest.raises(InputError, match=of_images):
        MultiCategory(datasets=[twice, {**twice, "dataset": "MPDD"}]).setup()
    monkeypatch.setattr("anomalib.data.datamodules.image.mvtecad.download_and_extract", fail)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"MVTecAD is not complete under .*empty .*no route to host"):
        MultiCategory("MVTecAD", tmp_path / "empty").prepare_data()
