"""Pseudo-classes in anomalib's engine: found once, kept in the checkpoint, the same in every process."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import trainings
from anomalib.data import Folder
from anomalib.data.utils import read_image
from lightning import Callback, seed_everything
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import RandomInvert
from trainings import engine, last_checkpoint

from anomalib_ccl import CCL
from anomalib_ccl.errors import InputError

PRODUCTS = ("brick", "retina", "tissue")


class Record(Callback):
    """Write down the losses of each step, and, at the end, the classes that each process used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.losses: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        logged = trainer.callback_metrics.items()
        self.losses.append({key: value.item() for key, value in logged if key.startswith("train_loss")})

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"classes_{trainer.global_rank}.json").write_text(json.dumps(pl_module.classes.index_of_image))


def make_model(**kwargs: Any) -> CCL:
    seed_everything(0)
    options = {"image_size": (64, 64), "visualizer": False, "calibrate": False}
    return CCL("tf_efficientnet_lite0", **options, **kwargs)


def fit(model: CCL, images: Any, folder: Path, epochs: int = 1, ckpt_path: Any = None, **kwargs: Any) -> Record:
    """Train on a datamodule or a data loader."""
    record = Record(folder)
    run = engine(folder, record, max_epochs=epochs, limit_val_batches=0, **kwargs)
    given = "train_dataloaders" if isinstance(images, DataLoader) else "datamodule"
    run.fit(model, ckpt_path=ckpt_path, **{given: images})
    return record


def classes(folder: Path, rank: int = 0) -> dict[str, int]:
    return json.loads((folder / f"classes_{rank}.json").read_text())


def make_folder(root: Path, **kwargs: Any) -> Folder:
    splits = {"test_split_mode": "none", "val_split_mode": "none"}
    return Folder("mixed", "normal", root, train_batch_size=6, num_workers=0, **splits, **kwargs)


@pytest.fixture(scope="module")
def mixed(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three products in one folder, with nothing but their looks to tell them apart for the model."""
    root = tmp_path_factory.mktemp("mixed")
    (root / "normal").mkdir()
    for product in PRODUCTS:
        for image in (sample_root / product / "train" / "good").iterdir():
            (root / "normal" / f"{image.stem}_{product}.png").write_bytes(image.read_bytes())
    return root


@pytest.fixture(scope="module")
def trained(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    folder = tmp_path_factory.mktemp("trained")
    return folder, fit(make_model(), make_folder(mixed), folder)


def test_products_mixed_in_one_folder_are_told_apart_by_default(trained: tuple[Path, Record]) -> None:
    folder, record = trained
    pairs = {(Path(path).stem.split("_")[1], label) for path, label in classes(folder).items()}
    assert len(pairs) == len({label for _, label in pairs}) == len(PRODUCTS)
    assert all(losses["train_loss_local"] > 0 and losses["train_loss_global"] > 0 for losses in record.losses)


def test_checkpoint_holds_the_classes_as_plain_data(trained: tuple[Path, Record]) -> None:
    folder, _ = trained
    loaded = CCL.load_from_checkpoint(last_checkpoint(folder))
    assert loaded.classes.pseudo_labels == {path: f"pseudo_{label}" for path, label in classes(folder).items()}


def altered_checkpoint(folder: Path, target: Path) -> dict[str, int]:
    """Save a checkpoint whose classes no clustering would find, and return those."""
    content = torch.load(last_checkpoint(folder), weights_only=True)
    paths = sorted(content["training_classes"]["pseudo_labels"])
    content["training_classes"]["pseudo_labels"] = {path: f"pseudo_{i % 2}" for i, path in enumerate(paths)}
    torch.save(content, target)
    return {path: i % 2 for i, path in enumerate(paths)}


def test_resumed_training_takes_the_classes_from_the_checkpoint(
    trained: tuple[Path, Record], mixed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = altered_checkpoint(trained[0], tmp_path / "altered.ckpt")
    with caplog.at_level(logging.INFO, "anomalib_ccl"):
        fit(make_model(), make_folder(mixed), tmp_path, epochs=2, ckpt_path=tmp_path / "altered.ckpt")
    assert classes(tmp_path) == expected
    assert not any("Pseudo-classes found" in message for message in caplog.messages)


def test_classes_are_found_anew_for_images_that_the_checkpoint_does_not_know(
    trained: tuple[Path, Record], mixed: Path, sample_root: Path, tmp_path: Path
) -> None:
    altered_checkpoint(trained[0], tmp_path / "altered.ckpt")
    shutil.copytree(mixed, tmp_path / "data")
    fit(make_model(), make_folder(tmp_path / "data"), tmp_path, epochs=2, ckpt_path=tmp_path / "altered.ckpt")
    assert len(set(classes(tmp_path).values())) == len(PRODUCTS)


def test_clustering_changes_no_random_number_of_the_training(
    sample_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = []
    with caplog.at_level(logging.INFO, "anomalib_ccl"):
        for source in ("category", "pseudo"):
            model = make_model(class_labels=source, research={"noise_probability": 1})
            images = trainings.data(sample_root, PRODUCTS, train_batch_size=8)
            records.append(fit(model, images, tmp_path / source))
    assert "V-measure of the pseudo-classes: 1.000" in caplog.messages
    assert records[0].losses == records[1].losses


def test_images_are_clustered_as_the_model_sees_them_but_without_augmentations(mixed: Path, tmp_path: Path) -> None:
    model, seen = make_model(), []
    model.model.network.teacher.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    fit(model, make_folder(mixed, train_augmentations=RandomInvert(p=1)), tmp_path)
    images = torch.stack([read_image(path, as_tensor=True) for path in classes(tmp_path)])
    torch.testing.assert_close(torch.cat(seen[:3]), model.pre_processor.transform(images))


def test_products_are_told_apart_without_a_datamodule(
    trained: tuple[Path, Record], mixed: Path, tmp_path: Path
) -> None:
    data = make_folder(mixed)
    data.setup()
    fit(make_model(), data.train_dataloader(), tmp_path)
    assert classes(tmp_path) == classes(trained[0])


def test_two_processes_have_the_same_classes_found_or_resumed(
    trained: tuple[Path, Record], mixed: Path, tmp_path: Path
) -> None:
    expected = altered_checkpoint(trained[0], tmp_path / "altered.ckpt")
    two = {"strategy": "ddp_fork", "devices": 2}
    fit(make_model(), make_folder(mixed), tmp_path / "found", **two)
    fit(make_model(), make_folder(mixed), tmp_path / "resumed", 2, tmp_path / "altered.ckpt", **two)
    for rank in range(2):
        assert classes(tmp_path / "found", rank) == classes(trained[0])
        assert classes(tmp_path / "resumed", rank) == expected


def test_identical_images_are_one_class_though_more_are_asked_for(
    mixed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = next((mixed / "normal").iterdir()).read_bytes()
    (tmp_path / "normal").mkdir()
    for i in range(7):
        (tmp_path / "normal" / f"{i}.png").write_bytes(image)
    record = fit(make_model(n_pseudo_classes=3), make_folder(tmp_path), tmp_path)
    assert set(classes(tmp_path).values()) == {0}
    assert "Only 1 of 3 pseudo-classes found: all other images are copies." in caplog.messages
    assert record.losses[-1]["train_loss_global"] == 0


def test_more_classes_than_images_are_refused_before_the_training(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="n_pseudo_classes is 19, but there are only 18 training images"):
        fit(make_model(n_pseudo_classes=19), make_folder(mixed), tmp_path)
