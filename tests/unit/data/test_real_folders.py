"""Folders as people have them, read right or named."""

import logging
import shutil

import numpy as np
import pytest
from layouts import FOLDER_ARGUMENTS, LAYOUTS, joined, make_tree
from noise import write_images
from PIL import Image

from anomalib_ccl.data.reading import PixelRanges
from anomalib_ccl.errors import InputError

# Where their masks lie, if not in ground_truth.
MASKS = {"BMAD": ["valid/Ungood/label", "test/Ungood/label"], "Folder": ["masks"]}
WITHOUT_FOLDERS = {"MANTA", "RealIAD"}  # their tables say where images and masks are
READ_BY_ANOMALIB = {"MVTecAD2"}  # which follows links to where they lead, and does not read defects without masks


def category_folder(dataset, root, name):
    return root / {"Visa": "visa_pytorch", "RealIAD": "realiad_256"}.get(dataset, "") / name


def masks_by_image(datamodule, category):
    """How many pixels the mask of each test image has; None where it comes without."""
    found = {}
    for batch in datamodule.test_dataloader():
        for index, path in enumerate(batch.image_path):
            found[path] = None if batch.gt_mask is None else int(batch.gt_mask[index].sum())
    samples = datamodule.test_data.samples
    return {path: found[path] for path in samples[samples["category"] == category]["image_path"]}


@pytest.mark.parametrize("dataset", sorted(set(LAYOUTS) - WITHOUT_FOLDERS - READ_BY_ANOMALIB - {"VAD"}))
def test_category_without_masks_joins_those_with_masks(dataset, tmp_path):
    first, second = make_tree(dataset, tmp_path)
    for masks in MASKS.get(dataset, ["ground_truth"]):
        shutil.rmtree(category_folder(dataset, tmp_path, first) / masks)
    datamodule = joined(dataset, tmp_path)
    defective = datamodule.test_data.samples.query("label_index == 1")
    assert set(defective["category"]) == {first, second}
    assert set(masks_by_image(datamodule, first).values()) == {None}
    of_second = masks_by_image(datamodule, second)
    assert None not in of_second.values()
    assert all(of_second[path] > 0 for path in defective.query("category == @second")["image_path"])


@pytest.mark.parametrize("dataset", sorted(set(LAYOUTS) - WITHOUT_FOLDERS - {"VAD"}))
def test_category_without_defects_or_test_images_is_tested_on_normal_images(dataset, tmp_path):
    first, _ = make_tree(dataset, tmp_path)
    folder = category_folder(dataset, tmp_path, first)
    for name in ("test", "test_public", "ground_truth", "bad", "masks"):
        shutil.rmtree(folder / name, ignore_errors=True)
    datamodule = joined(dataset, tmp_path)
    samples = datamodule.test_data.samples
    assert set(samples.query("category == @first")["label_index"]) <= {0}
    assert set(samples.query("category != @first")["label_index"]) == {0, 1}
    assert len(datamodule.train_data.samples.query("category == @first")) > 0
    if dataset != "MVTecAD2":  # which takes no test images from those for training
        assert set(masks_by_image(datamodule, first).values()) == {0}


def test_mvtec_products_without_defects_alone_are_trained_and_tested(two_categories):
    for folder in two_categories.glob("*/*/bad"):
        shutil.rmtree(folder)
    datamodule = joined("MVTecAD", two_categories)
    assert len(datamodule.test_data) == 4
    assert all(batch.gt_mask is None and batch.gt_label.sum() == 0 for batch in datamodule.test_dataloader())


@pytest.mark.parametrize("mode", ["from_test", "same_as_test", "from_train", "synthetic", "none"])
def test_product_with_nothing_but_training_images_can_be_split(two_categories, mode):
    shutil.rmtree(two_categories / "cable" / "test")
    shutil.rmtree(two_categories / "cable" / "ground_truth")
    datamodule = joined("MVTecAD", two_categories, val_split_mode=mode, test_split_mode="from_dir")
    assert set(datamodule.train_data.samples["category"]) == {"bottle", "cable"}


@pytest.mark.parametrize("kept", [0, 1])
def test_defective_images_without_a_mask_are_named_and_never_count_as_normal_pixels(two_categories, caplog, kept):
    masks = sorted((two_categories / "cable" / "ground_truth" / "bad").iterdir())
    masks[kept].unlink()
    with caplog.at_level(logging.WARNING):
        datamodule = joined("MVTecAD", two_categories)
    path = str(two_categories / "cable" / "test" / "bad" / f"{kept:03}.png")
    assert f"leave out 1 defective images of cable that have no mask: {path}" in caplog.text
    found = masks_by_image(datamodule, "cable")
    assert found.pop(path) is None
    assert sorted(found.values())[:2] == [0, 0]
    assert max(found.values()) > 0


def test_masks_pair_by_name_in_the_layout_of_every_folder_datamodule(tmp_path):
    # Sorted, 1.png comes before 10.png, but 10_mask.png before 1_mask.png.
    for dataset, bad, truth in (("MVTecAD", "test/bad", "ground_truth/bad"), ("Folder", "bad", "masks")):
        folder = tmp_path / dataset / "part"
        write_images(folder / ("train/good" if dataset == "MVTecAD" else "good"), 3)
        for number in (1, 2, 10, 11):
            for place, name in ((bad, f"{number}.png"), (truth, f"{number}_mask.png")):
                pixels = np.zeros((32, 32), np.uint8)
                pixels[0, :number] = 255
                (folder / place).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / place / name)
        datamodule = joined(dataset, tmp_path / dataset, val_split_mode="none")
        counts = {path.split("/")[-1]: n for path, n in masks_by_image(datamodule, "part").items() if "bad" in path}
        assert counts == {"1.png": 1, "2.png": 2, "10.png": 10, "11.png": 11}


def test_mask_without_an_image_is_named(two_categories):
    image = two_categories / "cable" / "test" / "bad" / "001.png"
    image.unlink()
    with pytest.raises(
        InputError, match=r"cable cannot be set up: mask .*bad/001_mask.png fits no image in .*test/bad"
    ):
        joined("MVTecAD", two_categories)


@pytest.mark.parametrize("dataset", ["BMAD", "Folder", "MVTecAD", "MVTecLOCO"])
@pytest.mark.parametrize("kind", ["files", "half of the files", "folders", "category", "root"])
def test_links_are_followed_and_named_by_their_place(dataset, kind, tmp_path):
    names = make_tree(dataset, tmp_path / "set")
    expected = sorted(joined(dataset, tmp_path / "set").test_data.samples["image_path"])
    if kind == "root":
        (tmp_path / "set").rename(tmp_path / "store")
        (tmp_path / "set").symlink_to("store")
    elif kind == "category":
        category_folder(dataset, tmp_path / "set", names[0]).rename(tmp_path / "store")
        category_folder(dataset, tmp_path / "set", names[0]).symlink_to(tmp_path / "store")
    else:
        leaves = sorted((tmp_path / "set").rglob("*.png"))[:: 2 if kind.startswith("half") else 1]
        if kind == "folders":
            parents = {path.parent for path in leaves}
            leaves = sorted(folder for folder in parents if not any(folder in path.parents for path in parents))
        for number, path in enumerate(leaves):
            (tmp_path / "store").mkdir(exist_ok=True)
            path.rename(tmp_path / "store" / f"blob{number}")
            path.symlink_to(tmp_path / "store" / f"blob{number}")
    datamodule = joined(dataset, tmp_path / "set")
    assert sorted(datamodule.test_data.samples["image_path"]) == expected
    assert sum(len(batch) for batch in datamodule.train_dataloader()) >= len(datamodule.train_data)
    assert sum(len(batch) for batch in datamodule.test_dataloader()) == len(expected)


def test_link_that_leads_nowhere_is_named_before_the_run(two_categories):
    path = two_categories / "cable" / "train" / "good" / "001.png"
    path.unlink()
    path.symlink_to("../nowhere.png")
    with pytest.raises(InputError, match=rf"{path}, a link to \.\./nowhere.png, which is not there: category 'cable'"):
        joined("MVTecAD", two_categories)
    datamodule = joined("MVTecAD", two_categories, skip_corrupt=True)
    assert datamodule.train_data.samples["category"].value_counts().to_dict() == {"bottle": 4, "cable": 3}


def test_link_to_a_folder_above_it_is_not_read_for_ever(two_categories):
    (two_categories / "cable" / "train" / "good" / "again").symlink_to("..", target_is_directory=True)
    assert len(joined("MVTecAD", two_categories, categories=["cable"]).train_data) == 4


@pytest.mark.parametrize("name", ["schraube groß", "目录 b", "Über-Ø", "na\u0308h", "ideographic\u3000space", "a'b"])
@pytest.mark.parametrize("dataset", ["MVTecAD", "Folder", "RealIAD"])
def test_paths_may_have_any_letters(dataset, name, tmp_path):
    LAYOUTS[dataset][0](tmp_path / name, "audiojack")
    LAYOUTS[dataset][0](tmp_path / name, name if dataset != "RealIAD" else "pcb")
    datamodule = joined(dataset, tmp_path / name)
    assert len(datamodule.category_names) == 2
    assert all(f"/{name}/" in path for batch in datamodule.test_dataloader() for path in batch.image_path)


def test_suffixes_may_differ_and_other_files_are_left_alone(two_categories, caplog):
    good = two_categories / "cable" / "train" / "good"
    for suffix in (".PNG", ".jpg", ".JPEG", ".webp", ".bmp", ".tif", ".TIFF"):
        write_images(good, 1, suffix=suffix)
    for other in ("Thumbs.db", ".DS_Store", "desktop.ini", "notes.txt", "._000.png", ".hidden.png", "list.csv"):
        (good / other).write_text("no image")
    (good / ".cache").mkdir()
    (good / ".cache" / "000.png").write_text("no image")
    datamodule = joined("MVTecAD", two_categories)
    assert len(datamodule.train_data.samples.query("category == 'cable'")) == 4 + 7
    assert sum(len(batch) for batch in datamodule.train_dataloader()) >= 15
    assert not caplog.records


def test_images_in_folders_inside_are_read_and_those_elsewhere_pointed_out(two_categories, caplog):
    write_images(two_categories / "cable" / "train" / "good" / "lot 2", 2)
    write_images(two_categories / "cable" / "train", 1)
    write_images(two_categories / "cable" / "spare", 1)
    write_images(two_categories / "cable" / "train" / "bad", 3)
    datamodule = joined("MVTecAD", two_categories, categories=["cable"])
    assert len(datamodule.train_data) == 6
    assert "Left out 2 images in" in caplog.text
    assert "Left out 3 training images of category 'cable'" in caplog.text


def test_product_without_abnormal_dir_joins_the_others_in_folder(tmp_path):
    make_tree("Folder", tmp_path)
    write_images(tmp_path / "new" / "good", 8)
    write_images(tmp_path / "empty" / "good", 8)
    (tmp_path / "empty" / "bad").mkdir()
    datamodule = joined("Folder", tmp_path, val_split_mode="none")
    assert datamodule.category_names == ["empty", "left door", "new", "right door"]
    normal = datamodule.test_data.samples.query("label_index == 0")
    assert {"new", "empty"} <= set(normal["category"])


def test_folders_of_several_defects_find_their_masks(tmp_path):
    for kind in ("scratch", "dent"):
        write_images(tmp_path / "part" / kind, 2)
        write_images(tmp_path / "part" / "masks" / kind, 2, mode="L")
    write_images(tmp_path / "part" / "good", 5)
    for mask_dir in ("masks", ["masks/scratch", "masks/dent"]):
        arguments = {**FOLDER_ARGUMENTS, "abnormal_dir": ["scratch", "dent"], "mask_dir": mask_dir}
        datamodule = joined("Folder", tmp_path, dataset_args=arguments, val_split_mode="none")
        masks = datamodule.test_data.samples.query("label_index == 1")
        assert [path.replace("part/", "part/masks/") for path in masks["image_path"]] == masks["mask_path"].tolist()


def test_masks_inside_the_folder_of_their_images_are_no_images(tmp_path):
    write_images(tmp_path / "part/good", 4)
    write_images(tmp_path / "part/bad", 2)
    write_images(tmp_path / "part/bad/masks", 2, mode="L")
    datamodule = joined("Folder", tmp_path, dataset_args={**FOLDER_ARGUMENTS, "mask_dir": "bad/masks"})
    assert len(datamodule.val_data.samples) + len(datamodule.test_data.samples) == 3  # with one from the training
    assert set(masks_by_image(datamodule, "part").values()) <= {0, 16, 20}


@pytest.mark.parametrize("arguments", [{"normal_test_dir": "good"}, {"abnormal_dir": ["bad", "good/lot"]}])
def test_image_of_two_roles_is_refused(tmp_path, arguments):
    make_tree("Folder", tmp_path)
    write_images(tmp_path / "left door/good/lot", 1)
    message = "image .*/left door/good/.*.png is among the .* images of left door and again among the"
    with pytest.raises(InputError, match=message):
        joined("Folder", tmp_path, dataset_args={"normal_dir": "good", "abnormal_dir": "bad", **arguments})


def test_name_of_a_folder_is_no_pattern(tmp_path):
    for name in ("good [1]", "good 1"):
        write_images(tmp_path / name / name, 4)
    assert joined("Folder", tmp_path, dataset_args={"normal_dir": "good [1]"}).category_names == ["good [1]"]


def test_products_and_files_that_are_not_read_are_pointed_out(two_categories, caplog):
    (two_categories / "cable/train").rename(two_categories / "cable/Train")
    (two_categories / "cable/test").rename(two_categories / "cable/Test")
    for number in range(2):
        Image.new("L", (8, 8)).save(two_categories / f"bottle/train/good/{number}.gif")
    joined("MVTecAD", two_categories)
    assert f"Left out 10 images in {two_categories}/cable, which has no folder train or test" in caplog.text
    assert (
        f"Left out 2 files of kinds that are not read, such as {two_categories}/bottle/train/good/0.gif" in caplog.text
    )


def test_folder_of_normal_images_in_other_letters_is_not_one_of_defects(two_categories):
    (two_categories / "cable/test/good").rename(two_categories / "cable/test/Good")
    with pytest.raises(InputError, match="cable/test/Good would count as defective; rename it good, or otherwise"):
        joined("MVTecAD", two_categories)


def test_what_is_missing_in_public_data_sets_is_named(tmp_path):
    make_tree("MVTecAD2", tmp_path / "ad2")
    (tmp_path / "ad2/can/test_public/ground_truth/bad/001_mask.png").unlink()
    with pytest.raises(InputError, match=r"category 'can' of MVTecAD2 in \S+can cannot be set up: "):
        joined("MVTecAD2", tmp_path / "ad2")
    make_tree("RealIAD", tmp_path / "iad")
    table = tmp_path / "iad/realiad_jsons/realiad_jsons/pcb.json"
    for content in ("[]", "{", '{"train": [{}]}'):
        table.write_text(content)
        with pytest.raises(InputError, match=f"{table} does not list images as Real-IAD does"):
            joined("RealIAD", tmp_path / "iad")


def to_16_bits(paths, factor):
    for path in paths:
        pixels = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * factor
        path.unlink()
        Image.fromarray(pixels).save(path)


def test_range_of_high_bit_depth_images_is_that_of_the_training_images_alone(two_categories, caplog):
    to_16_bits(two_categories.glob("*/train/good/*.png"), 16)
    to_16_bits(two_categories.glob("*/test/*/*.png"), 32)  # brighter than the training's white: not clipped
    with caplog.at_level(logging.INFO):
        datamodule = joined("MVTecAD", two_categories, val_split_mode="same_as_test")
    assert "8 training images have more than 8 bits; black and white are integers from 0 to 4095" in caplog.text
    assert datamodule.ranges == PixelRanges(integers=(0, 4095))
    for loader, mean in ((datamodule.train_dataloader(), 0.5), (datamodule.test_dataloader(), 1.0)):
        for batch in loader:
            assert batch.image.mean() == pytest.approx(mean, abs=0.1)
    assert batch.image.max() > 1.5
    datamodule.ranges = PixelRanges(integers=(0, 65535))  # those of the model that is tested
    for loader in (datamodule.train_dataloader(), datamodule.val_dataloader(), datamodule.test_dataloader()):
        assert next(iter(loader)).image.max() < 0.2


@pytest.mark.parametrize("kind", ["16 bits", "turned"])
@pytest.mark.parametrize("argument", ["val_split_mode", "test_split_mode"])
def test_synthetic_defects_of_images_that_anomalib_reads_wrong_are_refused(two_categories, kind, argument):
    path = two_categories / "bottle/train/good/002.png"
    if kind == "16 bits":
        to_16_bits([path], 16)
    else:
        image = Image.open(path)
        exif = image.getexif()
        exif[0x0112] = 3
        image.save(path, exif=exif)
    with pytest.raises(InputError, match=f"no synthetic defects can be made of {path}: .*; choose another split mode"):
        joined("MVTecAD", two_categories, **{argument: "synthetic"})


@pytest.mark.parametrize("skip_corrupt", [False, True])
def test_defective_image_whose_mask_is_empty_is_named_once(two_categories, caplog, skip_corrupt):
    mask = two_categories / "cable/ground_truth/bad/001_mask.png"
    Image.new("L", (32, 32)).save(mask)
    image = two_categories / "cable/test/bad/001.png"
    list(joined("MVTecAD", two_categories, skip_corrupt=skip_corrupt).test_dataloader())
    assert caplog.messages == [f"The mask {mask} of the defective image {image} is empty"]


@pytest.mark.parametrize("name", ["unknown", "mean"])
def test_category_of_a_name_that_tables_use_is_refused(tmp_path, name):
    write_images(tmp_path / name / "good", 4)
    with pytest.raises(InputError, match=f"a category cannot be called '{name}', .*; rename its folder"):
        joined("Folder", tmp_path, dataset_args={"normal_dir": "good"})
