"""MANTA: five views in each file, each an image of its own."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import miniatures
import numpy as np
import pytest
import torch
from anomalib.cli import AnomalibCLI
from anomalib.data import get_datamodule
from layouts import joined
from PIL import Image

from anomalib_ccl.data import MANTA, MANTADataset, MultiCategory
from anomalib_ccl.data.manta import CATEGORIES, DOMAINS
from anomalib_ccl.data.reading import read_image
from anomalib_ccl.data.views import file_of, view_paths


@pytest.fixture
def root(tmp_path: Path) -> Path:
    miniatures.manta(tmp_path / "MANTA", ["maize", "nut"])
    return tmp_path / "MANTA"


def change(root: Path, key: str, value: object, split: str = "test-pixel") -> None:
    """Change an entry of the table, that of the last image of a list of nuts."""
    table = root / "mechanics/meta.json"
    lists = json.loads(table.read_text())
    lists[split]["nut"][-1][key] = value
    table.write_text(json.dumps(lists))


def test_there_are_38_categories_in_five_domains():
    assert set(DOMAINS) == {"electronics", "mechanics", "grain", "groceries", "medicine"}
    assert len(set(CATEGORIES)) == len(CATEGORIES) == 38


def test_views_are_the_fifths_of_their_file_from_left_to_right(root):
    file = root / "mechanics/nut/train/good/0000.png"
    whole = read_image(file)
    views = [read_image(path) for path in view_paths(file)]
    assert torch.equal(torch.cat(views, dim=2), whole)
    assert {view.shape for view in views} == {(3, 32, 32)}
    assert [file_of(path) for path in view_paths(file)] == [(str(file), n) for n in range(1, 6)]


def test_folder_that_is_called_as_a_file_is_no_file_of_views(tmp_path):
    path = tmp_path / "0000.png/view1.png"
    path.parent.mkdir()
    Image.new("RGB", (10, 2)).save(path)
    assert file_of(path) == (str(path), None)
    assert read_image(path).shape == (3, 2, 10)


def test_view_is_defective_where_its_part_of_the_mask_is_white(root):
    test_data = joined("MANTA", root).test_data
    samples = test_data.samples
    assert samples.groupby(["category", "label_index"]).size().to_dict() == {
        (name, label): n for name in ("maize", "nut") for label, n in ((0, 9), (1, 1))
    }
    defective = samples[samples["label_index"] == 1]
    assert [path[-len("bad/0000.png/view5.png") :] for path in defective["image_path"]] == [
        "bad/0000.png/view5.png"
    ] * 2
    item = test_data[int(defective.index[0])]
    assert item.gt_mask.shape == (32, 32)
    assert item.gt_mask[:, -8:].all()
    assert not item.gt_mask[:, :-8].any()
    assert test_data.task == "segmentation"


def test_sample_tells_the_views_of_one_object(root):
    samples = joined("MANTA", root).test_data.samples
    of_sample = samples.groupby("sample")["label_index"].agg(["size", "max"])
    assert of_sample["size"].tolist() == [5, 5, 5, 5]
    assert {Path(path).parent.name: label for path, label in of_sample["max"].items()} == {"good": 0, "bad": 1}


def test_root_may_be_that_of_one_domain(root):
    assert joined("MANTA", root / "mechanics").category_names == ["nut"]
    assert len(MANTADataset(root / "grain", "maize", split="train")) == 10


def test_without_a_table_folders_as_those_of_mvtec_ad_are_read(root):
    for domain, name in (("mechanics", "nut"), ("grain", "maize")):
        (root / domain / "meta.json").unlink()
        folder = root / domain / name
        (folder / "test-pixel").rename(folder / "test")
        (folder / "ground_truth").mkdir()
        (folder / "test/mask").rename(folder / "ground_truth/bad")
    datamodule = joined("MANTA", root)
    assert datamodule.train_data.samples.groupby("category").size().to_dict() == {"maize": 10, "nut": 10}
    assert datamodule.test_data.samples["label_index"].sum() == 2


@pytest.mark.parametrize("by", ["name", "class path", "class"])
def test_datamodule_of_one_category_trains_models_of_anomalib(by, root):
    arguments = {"root": root, "category": "nut", "train_batch_size": 3, "num_workers": 0}
    paths = {"name": "MANTA", "class path": "anomalib.data.MANTA"}
    if by == "class":
        datamodule = MANTA(**arguments)
    else:
        datamodule = get_datamodule({"class_path": paths[by], "init_args": arguments})
    datamodule.prepare_data()
    datamodule.setup()
    batch = next(iter(datamodule.train_dataloader()))
    assert batch.image.shape == (3, 3, 32, 32)
    batch = next(iter(datamodule.test_dataloader()))
    assert batch.gt_label.sum() == 1
    assert batch.gt_mask.shape == (10, 32, 32)


@pytest.mark.parametrize("mode", ["from_test", "from_train"])
def test_validation_images_may_be_split_off(mode, root):
    datamodule = MANTA(root, "nut", num_workers=0, val_split_mode=mode, val_split_ratio=0.5, seed=0)
    datamodule.setup()
    item = datamodule.val_data[0]
    assert item.image.shape == (3, 32, 32)
    assert len(datamodule.train_data) + len(datamodule.val_data) + len(datamodule.test_data) >= 20


@pytest.mark.parametrize("argument", ["test_split_mode", "val_split_mode"])
def test_synthetic_defects_are_refused(argument, root):
    with pytest.raises(ValueError, match=f"{argument}: MANTA has no synthetic defects, .* choose another"):
        MANTA(root, "nut", **{argument: "synthetic"})


def test_anomalib_trains_and_draws_on_one_category(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["train", "--model=Padim", "--model.backbone=resnet18", "--model.pre_trained=false", "--data=MANTA"]
    command += [f"--data.root={root}", "--data.category=nut", "--data.num_workers=0", "--trainer.accelerator=cpu"]
    AnomalibCLI(command)
    assert len([path for path in tmp_path.rglob("view*.png") if path.is_file()]) == 10


def test_black_mask_of_a_defective_object_is_told(root, caplog):
    mask = root / "mechanics/nut/test-pixel/mask/0000.png"
    Image.fromarray(np.zeros((32, 160), np.uint8)).save(mask)
    with caplog.at_level(logging.WARNING):
        assert len(joined("MANTA", root, categories=["nut"]).test_data) == 5
    assert "Left out 1 defective images of" in caplog.text
    assert "mask is black" in caplog.text
    assert str(root / "mechanics/nut/test-pixel/bad/0000.png") in caplog.text


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("mask_path", "", r"the defective image \S+bad/0000.png has no mask, which would tell"),
        ("mask_path", "nut/test-pixel/mask/9.png", r"nut/test-pixel/mask/9\.png\S* is not there"),
        ("img_path", "nut/test-pixel/bad/9.png", r"nut/test-pixel/bad/9\.png\S* is not there"),
        ("mask_path", "narrow.png", r"the mask \S+narrow.png is not one of MANTA: its width of 32 pixels cannot be"),
    ],
)
def test_wrong_entries_of_the_table_are_named(key, value, message, root):
    miniatures.write(root / "mechanics/narrow.png", "L")
    change(root, key, value)
    with pytest.raises(ValueError, match=message):
        joined("MANTA", root, categories=["nut"])


def test_entry_without_a_key_is_named(root):
    table = root / "mechanics/meta.json"
    table.write_text(table.read_text().replace('"anomaly"', '"anomalous"'))
    with pytest.raises(ValueError, match=r"the entry .* of \S+mechanics/meta.json has no 'anomaly'"):
        joined("MANTA", root, categories=["nut"])


def test_table_without_a_list_is_named(root):
    table = root / "mechanics/meta.json"
    table.write_text(table.read_text().replace('"test-pixel": {', '"test": {'))
    with pytest.raises(ValueError, match=r"mechanics/meta.json has no list 'test-pixel' of nut"):
        joined("MANTA", root, categories=["nut"])


def test_data_without_a_table_are_told_what_writes_it(root):
    (root / "mechanics/meta.json").unlink()
    with pytest.raises(ValueError, match=r"there is no \S+mechanics/meta.json, which lists .*; .* writes it"):
        joined("MANTA", root, categories=["nut"])


def test_file_that_is_not_five_views_is_named_when_it_is_read(root):
    file = root / "mechanics/nut/train/good/0001.png"
    Image.new("RGB", (161, 32)).save(file)
    datamodule = joined("MANTA", root, categories=["nut"])
    index = datamodule.train_data.samples["sample"].tolist().index(str(file))
    with pytest.raises(OSError, match=r"0001.png/view1.png .*its width of 161 pixels cannot be split into 5 equal"):
        datamodule.train_data[index]
    assert len(joined("MANTA", root, categories=["nut"], skip_corrupt=True).train_data) == 5


def test_data_that_are_not_there_are_told_where_to_get(tmp_path):
    (tmp_path / "MANTA").mkdir()
    with pytest.raises(FileNotFoundError, match=r"cannot be downloaded.*https://grainnet.github.io/MANTA"):
        MultiCategory("MANTA", tmp_path / "MANTA").prepare_data()
    (tmp_path / "MANTA/x").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no category of MANTA found: there is no folder \S+/<category>/train"):
        MultiCategory("MANTA", tmp_path / "MANTA").prepare_data()
    with pytest.raises(FileNotFoundError, match=r"/<domain>/nut/train; get MANTA from"):
        MANTA(tmp_path / "MANTA", "nut").prepare_data()
