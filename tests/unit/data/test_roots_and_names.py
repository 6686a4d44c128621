"""Which root is read, which starts a download, and what categories are called."""

import pytest
from conftest import write_images
from layouts import FOLDER_ARGUMENTS, folder, joined, mvtec

from anomalib_ccl.data import MultiCategory
from anomalib_ccl.data.misspelt import nearest_first, nearest_folder


@pytest.fixture
def downloads(monkeypatch):
    """The folders into which something was to be downloaded."""
    made = []

    def download(target, _):
        made.append(target)
        mvtec(target, "bottle")

    monkeypatch.setattr("anomalib.data.datamodules.image.mvtecad.download_and_extract", download)
    return made


def prepare(root=None, **arguments):
    MultiCategory("MVTecAD", root, num_workers=0, **arguments).prepare_data()


def test_default_root_of_a_fresh_machine_is_downloaded(tmp_path, monkeypatch, downloads):
    monkeypatch.chdir(tmp_path)
    prepare("./datasets/MVTecAD", categories=["bottle"])
    assert downloads == [tmp_path / "datasets" / "MVTecAD"]
    prepare(categories=["bottle"])  # which is there now
    assert len(downloads) == 1


def test_folder_that_has_the_name_of_the_data_set_is_downloaded(tmp_path, downloads):
    prepare(tmp_path / "MVTecAD", categories=["bottle"])
    assert downloads == [tmp_path / "MVTecAD"]


@pytest.mark.parametrize("content", [[], ["mvtec_anomaly_detection.tar.xz"]])
def test_folder_that_was_made_for_it_is_downloaded(tmp_path, downloads, content):
    for name in content:
        (tmp_path / name).touch()
    prepare(tmp_path, categories=["bottle"])
    assert downloads == [tmp_path]


@pytest.mark.parametrize("root", ["prodcts", "products/nowhere", "nowhere/MVTecAD", "datasets/MVTecAd", "MVTec"])
def test_misspelt_root_is_named_and_starts_no_download(tmp_path, monkeypatch, downloads, root):
    monkeypatch.chdir(tmp_path)
    mvtec(tmp_path / "products", "cap")
    with pytest.raises(FileNotFoundError, match=rf"there is no folder {tmp_path / root}: check root"):
        prepare(root)
    assert not downloads
    assert not (tmp_path / root).exists()


def test_data_set_beside_its_misspelt_name_starts_no_download(tmp_path, downloads):
    mvtec(tmp_path / "MVTec_AD", "bottle")
    with pytest.raises(FileNotFoundError, match=rf"did you mean {tmp_path}/MVTec_AD\?"):
        prepare(tmp_path / "MVTecAD")
    assert not downloads


def test_nearest_folder_is_proposed(tmp_path):
    (tmp_path / "Products" / "line1").mkdir(parents=True)
    assert nearest_folder(tmp_path / "prodcts" / "line1") == tmp_path / "Products" / "line1"
    assert nearest_folder(tmp_path / "something" / "else") is None


@pytest.mark.parametrize("kind", ["images", "folders"])
def test_root_with_something_else_in_it_starts_no_download(tmp_path, downloads, kind):
    write_images(tmp_path if kind == "images" else tmp_path / "other", 2)
    with pytest.raises(FileNotFoundError, match="no category of MVTecAD found"):
        prepare(tmp_path)
    assert not downloads


def test_category_that_is_not_on_disk_is_named_with_the_nearest_first(tmp_path, downloads):
    for name in ("deckel", "schraube", "mutter"):
        mvtec(tmp_path, name)
    for name in ("schraub", "Schraube"):
        with pytest.raises(ValueError, match=rf"'{name}' not found under {tmp_path}; found schraube, deckel, mutter$"):
            prepare(tmp_path, categories=[name])
    with pytest.raises(ValueError, match=r"'bottle' not found under .*; found deckel, mutter, schraube"):
        prepare(tmp_path, categories=["bottle"])  # anomalib has it, and would download all of MVTec AD
    assert not downloads


def test_category_without_training_images_is_not_passed_over(tmp_path):
    mvtec(tmp_path, "cap")
    write_images(tmp_path / "nut" / "test" / "good", 2)
    with pytest.raises(ValueError, match=r"category 'nut' of MVTecAD in .*nut has no training image"):
        joined("MVTecAD", tmp_path)
    assert joined("MVTecAD", tmp_path, categories=["cap"]).category_names == ["cap"]


def names_of(*entries):
    datamodule = MultiCategory(datasets=list(entries), num_workers=0)
    datamodule.setup()
    return datamodule.category_names


def entry(root, dataset="Folder"):
    return {"dataset": dataset, "root": root, "dataset_args": FOLDER_ARGUMENTS if dataset == "Folder" else {}}


def test_names_of_one_kind_get_their_folder_in_front_only_where_they_meet(tmp_path):
    for line, names in (("line1", ("cap", "nut")), ("line2", ("cap", "screw"))):
        for name in names:
            folder(tmp_path / line, name)
    assert names_of(entry(tmp_path / "line1")) == ["cap", "nut"]
    assert names_of(entry(tmp_path / "line1"), entry(tmp_path / "line2")) == ["line1/cap", "line2/cap", "nut", "screw"]


def test_folders_of_one_name_are_told_apart_by_those_above(tmp_path):
    for line in ("line1", "line2"):
        mvtec(tmp_path / line / "data", "cap")
    entries = [entry(tmp_path / line / "data", "MVTecAD") for line in ("line1", "line2")]
    assert names_of(*entries) == ["line1/data/cap", "line2/data/cap"]


def test_names_of_several_kinds_get_the_kind_in_front(tmp_path):
    folder(tmp_path / "line1", "cap")
    folder(tmp_path / "line2", "cap")
    mvtec(tmp_path / "ad", "bottle")
    entries = [entry(tmp_path / "line1"), entry(tmp_path / "line2"), entry(tmp_path / "ad", "MVTecAD")]
    assert names_of(*entries) == ["Folder/line1/cap", "Folder/line2/cap", "MVTecAD/bottle"]


def test_nearest_name_comes_first():
    assert nearest_first("Cable", ["bottle", "cable"]) == ["cable", "bottle"]
    assert nearest_first("xyz", ["b", "a"]) == ["a", "b"]
