"""MANTA: five views in each file, each an image of its own."""

import logging
from pathlib import Path

import miniatures
import numpy as np
import pytest
import torch
from anomalib.data import get_datamodule
from layouts import joined
from PIL import Image

from anomalib_ccl.data import MANTA, MultiCategory
from anomalib_ccl.data.reading import file_of, read_image, view_paths
from anomalib_ccl.errors import InputError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    miniatures.manta(tmp_path / "MANTA", ["maize", "nut"])
    return tmp_path / "MANTA"


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
    assert test_data.task == "segmentation"
    assert test_data.samples["category"].value_counts().to_dict() == {"maize": 10, "nut": 10}
    defective = test_data.samples[test_data.samples["label_index"] == 1]
    assert defective["image_path"].str.endswith("bad/0000.png/view5.png").tolist() == [True, True]
    item = test_data[int(defective.index[0])]
    assert item.gt_mask[:, -8:].all()
    assert not item.gt_mask[:, :-8].any()
    of_object = test_data.samples.groupby("sample")["label_index"].agg(["size", "max"])
    assert of_object["size"].tolist() == [5, 5, 5, 5]
    assert {Path(path).parent.name: label for path, label in of_object["max"].items()} == {"good": 0, "bad": 1}


def test_root_may_be_that_of_one_domain(root):
    assert joined("MANTA", root / "mechanics").category_names == ["nut"]


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


@pytest.mark.parametrize(
    ("arguments", "counts"),
    [
        ({}, (10, 10, 10)),
        ({"val_split_mode": "from_test"}, (10, 4, 6)),
        ({"val_split_mode": "from_test", "val_split_ratio": 0.0}, (10, None, 10)),
        ({"val_split_mode": "from_train", "val_split_ratio": 0.2}, (8, 2, 10)),
    ],
)
def test_datamodule_of_one_category_serves_models_of_anomalib(arguments, counts, root):
    arguments = {"root": root, "category": "nut", "train_batch_size": 3, "num_workers": 0, "seed": 0, **arguments}
    datamodule = get_datamodule({"class_path": "MANTA", "init_args": arguments})
    assert isinstance(datamodule, MANTA)
    datamodule.prepare_data()
    datamodule.setup()
    subsets = [getattr(datamodule, f"{name}_data", None) for name in ("train", "val", "test")]
    assert tuple(None if subset is None else len(subset) for subset in subsets) == counts
    assert next(iter(datamodule.train_dataloader())).image.shape == (3, 3, 32, 32)
    assert next(iter(datamodule.test_dataloader())).gt_mask.shape == (counts[2], 32, 32)
    assert datamodule.category == "nut"


def test_file_that_is_not_five_views_is_named_when_it_is_read(root):
    file = root / "mechanics/nut/train/good/0001.png"
    Image.new("RGB", (161, 32)).save(file)
    datamodule = joined("MANTA", root, categories=["nut"])
    index = datamodule.train_data.samples["sample"].tolist().index(str(file))
    with pytest.raises(InputError, match=r"0001.png/view1.png: its width of 161 pixels cannot be split into 5 equal"):
        datamodule.train_data[index]
    assert len(joined("MANTA", root, categories=["nut"], skip_corrupt=True).train_data) == 5


def test_black_mask_of_a_defective_object_is_named(root, caplog):
    mask = root / "mechanics/nut/test-pixel/mask/0000.png"
    Image.fromarray(np.zeros((32, 160), np.uint8)).save(mask)
    with caplog.at_level(logging.WARNING):
        assert len(joined("MANTA", root, categories=["nut"]).test_data) == 5
    assert f"whose mask is black: {root}/mechanics/nut/test-pixel/bad/0000.png" in caplog.text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("nut/test-pixel/mask/0000.png", "", r"the defective image \S+bad/0000.png has no mask, which would show"),
        ("test-pixel/mask/0000", "test-pixel/mask/9", r"nut/test-pixel/mask/9\.png\S* is not there"),
        ("test-pixel/bad//0000", "test-pixel/bad/9", r"nut/test-pixel/bad/9\.png\S* is not there"),
        ('"anomaly"', '"anomalous"', r"mechanics/meta.json does not list images of nut \(KeyError\('anomaly'\)\)"),
        ('"test-pixel": {', '"test": {', r"mechanics/meta.json does not list images of nut .*'test-pixel'"),
        ("{", "[{", r"mechanics/meta.json does not list images of nut .*JSONDecodeError"),
        (None, None, r"there is no \S+mechanics/meta.json, which lists .*; .* writes it"),
    ],
)
def test_what_the_table_lacks_is_named(root, old, new, message):
    table = root / "mechanics/meta.json"
    if old is None:
        table.unlink()
    else:
        table.write_text(table.read_text().replace(old, new))
    with pytest.raises(InputError, match=message):
        joined("MANTA", root, categories=["nut"])


def test_narrow_mask_is_named_and_synthetic_defects_are_refused(root):
    miniatures.write(root / "mechanics/nut/test-pixel/mask/0000.png", "L")
    test_data = joined("MANTA", root, categories=["nut"]).test_data
    with pytest.raises(InputError, match=r"mask .*0000.png/view.*: its width of 32 pixels cannot be split into 5"):
        list(test_data)
    with pytest.raises(InputError, match=r"no synthetic defects can be made of .*view1.png: .* choose another"):
        joined("MANTA", root, val_split_mode="synthetic")


def test_data_that_are_not_there_are_not_downloaded(tmp_path):
    for make in (lambda: MultiCategory("MANTA", tmp_path), lambda: MANTA(tmp_path, "nut")):
        with pytest.raises(InputError, match=r"/<domain>/<category>/train; .* get MANTA from https://grainnet"):
            make()
