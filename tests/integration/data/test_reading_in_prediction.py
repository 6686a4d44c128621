"""The same image has the same score in training's test and in every prediction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.deploy.inferencers import openvino_inferencer
from anomalib.engine import Engine
from anomalib.models import Padim
from PIL import Image
from torch.utils.data import DataLoader, Subset

from anomalib_ccl import CCL, MultiCategory
from anomalib_ccl.data.prediction import FolderImages
from anomalib_ccl.data.ranges import PixelRanges

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def padim() -> Padim:
    return Padim("resnet18", pre_trained=False, pre_processor=Padim.configure_pre_processor((32, 32)))


def ccl(**arguments) -> CCL:
    pre_processor = CCL.configure_pre_processor((64, 64))
    return CCL("mobilenetv3_small_100", pre_trained=False, pre_processor=pre_processor, **arguments)


@pytest.fixture
def root_of_12_bits(two_categories):
    """Images of 12 bits, of two sizes, and one that its EXIF data turn."""
    for number, path in enumerate([*two_categories.glob("*/train/*/*.png"), *two_categories.glob("*/test/*/*.png")]):
        pixels = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16
        Image.fromarray(pixels[: 32 - number % 2]).save(path)
    turned = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(two_categories / "bottle" / "test" / "good" / "turned.jpg", exif=exif)
    return two_categories


def scores(engine, model, **what) -> dict[str, float]:
    batches = engine.predict(model, **what)
    return {item.image_path: float(item.pred_score) for batch in batches for item in batch}


@pytest.mark.parametrize("make_model", [padim, ccl])
def test_folder_is_read_as_the_data_set_was(make_model, root_of_12_bits, tmp_path):
    torch.manual_seed(0)
    datamodule = MultiCategory("MVTecAD", root_of_12_bits, num_workers=0, train_batch_size=4, eval_batch_size=1, seed=0)
    model = make_model()
    engine = Engine(max_epochs=1, default_root_dir=tmp_path, **QUIET)
    engine.fit(model, datamodule=datamodule)
    assert model.pixel_ranges == PixelRanges(integers=(0, 4095), floats=(0, 1))
    expected = scores(engine, model, datamodule=datamodule)
    assert len(expected) == 9
    folder = root_of_12_bits / "bottle" / "test"
    in_folder = {path: score for path, score in expected.items() if path.startswith(str(folder))}

    assert scores(engine, model, data_path=folder) == pytest.approx(in_folder, abs=1e-5)
    checkpoint = engine.trainer.checkpoint_callback.best_model_path
    from_file = Engine(default_root_dir=tmp_path, **QUIET)
    assert scores(from_file, make_model(), data_path=folder, ckpt_path=checkpoint) == pytest.approx(in_folder, abs=1e-5)
    # Workers read before a run has begun, and a brighter image would change the range of another data set.
    Image.fromarray(np.full((32, 32), 65535, np.uint16)).save(root_of_12_bits / "cable" / "test" / "good" / "white.png")
    brighter = MultiCategory("MVTecAD", root_of_12_bits, num_workers=1, eval_batch_size=1)
    found = scores(Engine(default_root_dir=tmp_path, **QUIET), make_model(), datamodule=brighter, ckpt_path=checkpoint)
    assert brighter.ranges.integers == (0, 65535)
    assert {path: found[path] for path in expected} == pytest.approx(expected, abs=1e-5)


def test_deep_images_are_not_white_to_models_that_multi_category_did_not_train(two_categories, tmp_path):
    pixels = {}
    for path in two_categories.glob("bottle/*/*/*.png"):
        pixels[str(path)] = np.asarray(Image.open(path).convert("L"))
        Image.fromarray(pixels[str(path)].astype(np.uint16) * 257).save(path)
    datamodule = MVTecAD(two_categories, "bottle", num_workers=0)
    datamodule.setup()
    for dataset in (datamodule.train_data, FolderImages(two_categories / "bottle" / "test")):
        for item in (dataset[index] for index in range(len(dataset))):
            expected = torch.from_numpy(pixels[str(item.image_path)] / 255).float().expand(3, -1, -1)
            torch.testing.assert_close(item.image, expected)
    array = openvino_inferencer.read_image(item.image_path, as_tensor=False)
    np.testing.assert_allclose(array, expected.permute(1, 2, 0), atol=1e-6)


def test_folder_to_predict_has_the_images_that_multi_category_finds(tmp_path, make_category):
    folder = make_category(tmp_path / "größe 目录", "bottle", bad=1)
    (folder / "train" / "good" / "._000.png").write_text("no image")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "train").symlink_to(folder / "train")
    assert len(FolderImages(folder)) == 8
    assert [path.parent for path in FolderImages(tmp_path / "linked").image_filenames] == [
        tmp_path / "linked" / "train" / "good"
    ] * 4
    with pytest.raises(FileNotFoundError, match=f"there is no file or folder {tmp_path}/nowhere to predict"):
        FolderImages(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="there is no image in the folder"):
        FolderImages(tmp_path / "empty")
    (tmp_path / "broken.png").write_text("no image")
    with pytest.raises(OSError, match=f"cannot read image {tmp_path}/broken.png: .*; repair or remove it"):
        FolderImages(tmp_path / "broken.png")[0]


@pytest.mark.parametrize("arguments", [{}, {"class_labels": "pseudo", "n_pseudo_classes": 2}])
def test_model_is_trained_on_a_subset_in_a_users_own_loader(arguments, two_categories, tmp_path):
    datamodule = MultiCategory("MVTecAD", two_categories, num_workers=0)
    datamodule.setup()
    fold = Subset(datamodule.train_data, [0, 1, 2, 5, 6, 7])
    model = ccl(feature_cache=tmp_path / "cache", **arguments)
    Engine(max_epochs=1, default_root_dir=tmp_path, **QUIET).fit(
        model,
        train_dataloaders=DataLoader(fold, batch_size=3, shuffle=True),
        val_dataloaders=DataLoader(Subset(datamodule.train_data, [3, 4]), batch_size=2),
    )
    assert set(model.classes.index_of_image) == {item.image_path for item in fold}
    assert len(model.classes.names) == 2
