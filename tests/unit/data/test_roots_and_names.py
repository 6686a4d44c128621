"""Which root is read, which starts a download, and what categories are called."""

import pytest
from layouts import FOLDER_ARGUMENTS, folder, joined, mvtec
from noise import write_images

from anomalib_ccl.data import MultiCategory
from anomalib_ccl.errors import InputError


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


def test_default_root_and_a_folder_that_was_made_for_it_are_filled_by_a_download(tmp_path, monkeypatch, downloads):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        prepare(categories=["bottle"])
    made = tmp_path / "made"
    made.mkdir()
    (made / "mvtec_anomaly_detection.tar.xz").touch()  # of a download that was cut short
    prepare(made, categories=["bottle"])
    assert [path.absolute() for path in downloads] == [tmp_path / "datasets/MVTecAD", made]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("000.png", "no category of MVTecAD found"),
        ("other/000.png", "no category of MVTecAD found"),
        ("cap/train/good/000.png", "'bottle' not found under .*; found cap"),
    ],
)
def test_root_with_something_else_in_it_starts_no_download(tmp_path, downloads, content, message):
    write_images((tmp_path / content).parent, 1)
    with pytest.raises(InputError, match=message):
        prepare(tmp_path, categories=["bottle"])
    assert not downloads


@pytest.mark.parametrize("root", ["prodcts", "products/nowhere", "nowhere/MVTecAD", "datasets/MVTecAd", "MVTec"])
def test_misspelt_root_is_named_and_starts_no_download(tmp_path, monkeypatch, downloads, root):
    monkeypatch.chdir(tmp_path)
    mvtec(tmp_path / "products", "cap")
    with pytest.raises(InputError, match=rf"there is no folder {tmp_path / root}: check root"):
        prepare(root)
    assert not downloads
    assert not (tmp_path / root).exists()


def test_data_set_next_to_its_misspelt_name_starts_no_download(tmp_path, monkeypatch, downloads):
    monkeypatch.chdir(tmp_path)
    mvtec(tmp_path / "datasets/MVTec_AD", "bottle")
    for root in (None, "datasets/MVTecAD", "dataset/MVTec_AD"):
        with pytest.raises(InputError, match=rf"did you mean {tmp_path}/datasets/MVTec_AD\?"):
            prepare(root)
    assert not downloads


def test_category_without_training_images_is_not_passed_over(tmp_path):
    mvtec(tmp_path, "cap")
    write_images(tmp_path / "nut" / "test" / "good", 2)
    with pytest.raises(InputError, match=r"category 'nut' of MVTecAD in .*nut has no training image"):
        joined("MVTecAD", tmp_path)
    assert joined("MVTecAD", tmp_path, categories=["cap"]).category_names == ["cap"]


@pytest.mark.parametrize(
    ("products", "names"),
    [
        (["Folder line1 cap", "Folder line1 nut"], ["cap", "nut"]),
        (["Folder line1 cap", "Folder line2 cap", "Folder line2 nut"], ["line1/cap", "line2/cap", "nut"]),
        (["MVTecAD line1/data cap", "MVTecAD line2/data cap"], ["line1/data/cap", "line2/data/cap"]),
        (
            ["Folder line1 cap", "Folder line2 cap", "MVTecAD ad bottle"],
            ["Folder/line1/cap", "Folder/line2/cap", "MVTecAD/bottle"],
        ),
    ],
)
def test_names_get_only_that_in_front_which_tells_them_apart(tmp_path, products, names):
    for product in products:
        dataset, root, name = product.split()
        (folder if dataset == "Folder" else mvtec)(tmp_path / root, name)
    sets = dict.fromkeys(tuple(product.split()[:2]) for product in products)
    arguments = {"Folder": FOLDER_ARGUMENTS, "MVTecAD": {}}
    entries = [
        {"dataset": dataset, "root": tmp_path / root, "dataset_args": arguments[dataset]} for dataset, root in sets
    ]
    datamodule = MultiCategory(datasets=entries, num_workers=0)
    datamodule.setup()
    assert datamodule.category_names == names
