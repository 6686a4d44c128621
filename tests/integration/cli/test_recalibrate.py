"""Products come, go and change their light without a training, and what was there stays as it was."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import Folder, PredictDataset
from anomalib.engine import Engine
from PIL import Image

from anomalib_ccl import CCL, MultiCategory
from anomalib_ccl.errors import InputError
from anomalib_ccl.recalibrate import recalibrate

CATEGORIES = ["brick", "grass", "retina"]
CALIBRATION = "model.calibration."
# A row for each product, and in some a last one for unknown products.
OF_EACH = re.compile(r"calibration\.|memory\.vectors")
CALIBRATED = (CALIBRATION, "model.memory.")
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def data(root: Path, *categories: str, batch: int = 6) -> MultiCategory:
    return MultiCategory(root=root, categories=list(categories) or None, train_batch_size=batch, num_workers=0)


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def states(*paths: Path) -> list[dict[str, torch.Tensor]]:
    return [load(path)["state_dict"] for path in paths]


def test_images_of_the_training_give_the_calibration_of_the_training(checkpoint: Path, sample_root: Path) -> None:
    made = recalibrate(checkpoint, data(sample_root, *CATEGORIES, batch=32))
    assert made.path == checkpoint.with_name("model-recalibrated.ckpt")
    assert [(row.name, row.images) for row in made.products] == [(name, 6) for name in CATEGORIES]
    before, after = states(checkpoint, made.path)
    assert before.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-3, atol=1e-4)


def test_new_light_moves_the_limits_and_leaves_weights_and_thresholds(
    checkpoint: Path, sample_root: Path, tmp_path: Path
) -> None:
    for category in CATEGORIES:
        shutil.copytree(sample_root / category, tmp_path / "dark" / category)
    for path in (tmp_path / "dark").glob("*/train/good/*.png"):
        Image.open(path).convert("RGB").point(lambda value: value // 3).save(path)
    made = recalibrate(checkpoint, data(tmp_path / "dark"), output=tmp_path / "dark.ckpt")
    before, after = states(checkpoint, made.path)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same >= {name for name in before if not name.startswith(CALIBRATED)}
    assert not same & {f"{CALIBRATION}prototypes", f"{CALIBRATION}limits", "model.memory.vectors"}


@pytest.fixture
def added(checkpoint: Path, new_root: Path) -> Path:
    made = recalibrate(checkpoint, data(new_root), add=True, output=checkpoint.with_name("added.ckpt"))
    assert [row.name for row in made.products] == ["gravel_fine", "tissue"]
    return made.path


def test_added_products_come_behind_the_known_ones_which_stay_to_the_bit(checkpoint: Path, added: Path) -> None:
    assert load(added)["training_classes"]["names"] == [*CATEGORIES, "gravel_fine", "tissue"]
    before, after = states(checkpoint, added)
    for name in before:
        if OF_EACH.search(name):
            assert len(after[name]) == len(before[name]) + 2
            assert torch.equal(before[name][:3], after[name][:3])
        elif not name.endswith(".components"):
            assert torch.equal(before[name], after[name])


def test_several_products_in_the_folder_of_one_are_told_from_one(sample_root: Path, tmp_path: Path) -> None:
    model = CCL("tf_efficientnet_lite0", (64, 64), "memory", memory=20, visualizer=False)
    engine = Engine(default_root_dir=tmp_path, **QUIET)
    engine.fit(model, data(sample_root, "tissue"))
    for product, parts in {"grass": ["grass"], "mixed": ["grass", "brick", "retina"]}.items():
        folder = tmp_path / "new" / product / "good"
        folder.mkdir(parents=True)
        for part in parts:
            for image in sample_root.glob(f"{part}/train/good/*"):
                shutil.copy(image, folder / f"{part}_{image.name}")
    folders = {"dataset_args": {"normal_dir": "good"}, "test_split_ratio": 0.0, "val_split_mode": "none"}
    new = MultiCategory("Folder", tmp_path / "new", num_workers=0, **folders)
    made = recalibrate(engine.best_model_path, new, add=True, output=tmp_path / "added.ckpt")
    groups = {row.name: row.groups for row in made.products}
    assert groups == {"grass": 1, "mixed": 3}


def test_the_engine_scores_by_the_limits_of_an_added_product(added: Path, new_root: Path, tmp_path: Path) -> None:
    dataset = PredictDataset(new_root / "tissue/train/good")
    engine = Engine(default_root_dir=tmp_path, **QUIET)
    batches = engine.predict(CCL(visualizer=False), dataset=dataset, ckpt_path=added)
    told = [name for batch in batches for name in batch.explanation]
    assert set(told) <= {*CATEGORIES, "gravel_fine", "tissue", "unknown"}
    assert "tissue" in told


def test_a_removed_product_leaves_the_others_to_the_bit(added: Path) -> None:
    made = recalibrate(added, remove="grass", output=added.with_name("without.ckpt"))
    assert not made.products
    assert load(made.path)["training_classes"]["names"] == ["brick", "retina", "gravel_fine", "tissue"]
    before, after = states(added, made.path)
    for name in before:
        kept = [row for row in range(len(before[name])) if row != 1] if OF_EACH.search(name) else ...
        assert torch.equal(before[name][kept], after[name])


def test_a_training_on_old_and_new_products_starts_from_the_weights(
    added: Path, sample_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    everything = data(sample_root, *CATEGORIES, "gravel_fine", "tissue")
    engine, model = Engine(max_epochs=1, default_root_dir=tmp_path, **QUIET), CCL(visualizer=False)
    engine.fit(model, everything, ckpt_path=added)
    assert engine.trainer.global_step == 5
    assert model.classes.names == sorted([*CATEGORIES, "gravel_fine", "tissue"])
    assert "other products" not in caplog.text


def test_images_of_high_bit_depth_are_read_by_the_ranges_of_the_training(
    checkpoint: Path, new_root: Path, tmp_path: Path
) -> None:
    limits = {}
    trained = load(checkpoint)
    for depth, white in ((8, 255), (12, 4080)):
        good = tmp_path / f"{depth}/bolt/train/good"
        good.mkdir(parents=True)
        for path in (new_root / "gravel_fine/train/good").glob("*.png"):
            grey = np.asarray(Image.open(path).convert("L"))
            Image.fromarray(grey if depth == 8 else grey.astype(np.uint16) * 16).save(good / path.name)
        shutil.copytree(good, tmp_path / f"{depth}/bolt/test/good")
        # As if it had been trained on 12 bits; the new images do not use them to the full.
        trained["pixel_ranges"] = {"integers": None if depth == 8 else (0, white), "floats": (0, 1)}
        torch.save(trained, tmp_path / f"{depth}.ckpt")
        made = recalibrate(tmp_path / f"{depth}.ckpt", data(tmp_path / str(depth)), add=True)
        (product,) = made.products
        limits[depth] = product.limit
    assert limits[12] == pytest.approx(limits[8], rel=0.01)


def test_a_model_that_found_its_classes_itself_tells_them_again(
    checkpoint: Path, sample_root: Path, tmp_path: Path
) -> None:
    for name in ("grass", "retina"):
        made = recalibrate(checkpoint, remove=name, output=tmp_path / f"{name}.ckpt")
        checkpoint = made.path
    pseudo = load(checkpoint)
    pseudo["training_classes"] |= {"names": ["pseudo_0"], "pseudo_labels": {"/elsewhere/0.png": "pseudo_0"}}
    torch.save(pseudo, checkpoint)
    mixed = Folder("mixed", sample_root / "brick/train/good", train_batch_size=6, num_workers=0)
    made = recalibrate(checkpoint, mixed, output=tmp_path / "again.ckpt")
    assert [row.name for row in made.products] == ["pseudo_0"]
    with pytest.raises(InputError, match="Folder does not know the product of each image; use MultiCategory"):
        recalibrate(checkpoint, mixed, add=True, output=tmp_path / "more.ckpt")


def test_what_cannot_be_is_refused_and_nothing_is_written(
    checkpoint: Path, sample_root: Path, new_root: Path, tmp_path: Path
) -> None:
    two = recalibrate(checkpoint, remove="grass").path
    one = recalibrate(two, remove="brick", output=tmp_path / "one.ckpt").path
    uncalibrated = tmp_path / "uncalibrated.ckpt"
    state = load(checkpoint)
    model = CCL.load_from_checkpoint(checkpoint)
    model.model.calibration.reset()
    state["state_dict"] |= {name: v for name, v in model.state_dict().items() if name.startswith(CALIBRATION)}
    torch.save(state, uncalibrated)
    other = tmp_path / "other.ckpt"
    torch.save({**state, "state_dict": {"model.layer.weight": torch.ones(1)}}, other)
    there = {path: path.read_bytes() for path in tmp_path.iterdir()}

    refused: dict[str, Callable[[], object]] = {
        r"knows retina already; .* --add": lambda: recalibrate(one, data(sample_root, "retina", "tissue"), True),
        r"does not know tissue; .* --add": lambda: recalibrate(one, data(sample_root, "retina", "tissue")),
        r"no image of retina; .* --remove": lambda: recalibrate(two, data(sample_root, "brick")),
        r"no product 'bolt' to remove; .* brick, retina": lambda: recalibrate(two, remove="bolt"),
        r"last class cannot be removed": lambda: recalibrate(one, remove="retina"),
        r"uncalibrated.ckpt is not calibrated, .* resume its": lambda: recalibrate(uncalibrated, remove="brick"),
        r"other.ckpt is not the checkpoint of a CCL model": lambda: recalibrate(other, data(new_root), True),
        r"give either --data.* or --remove NAME": lambda: recalibrate(checkpoint),
        r"give either --data, .*or --remove": lambda: recalibrate(checkpoint, data(new_root), remove="brick"),
    }
    for message, act in refused.items():
        with pytest.raises(InputError, match=message):
            act()
    for output in (checkpoint, one):
        with pytest.raises(InputError, match=rf"{output} is there already and is not overwritten"):
            recalibrate(checkpoint, data(new_root), add=True, output=output)
    with pytest.raises(InputError, match="lies in a folder that is not there"):
        recalibrate(checkpoint, data(new_root), add=True, output=tmp_path / "nowhere/new.ckpt")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == there
