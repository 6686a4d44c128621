"""A model that looks at images tile by tile: trained, saved and loaded, with one score and one map."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import Resize
from trainings import SMALL, assert_calibrated_for_its_weights, assert_same_state, ccl, data, engine, last_checkpoint

from anomalib_ccl import CCL
from anomalib_ccl.errors import InputError

pytestmark = pytest.mark.openvino

TILED: dict[str, Any] = {"image_size": (32, 64), "tiles": [2, 2]}


class Run(NamedTuple):
    """A trained model, its checkpoint, and the batches that its teacher saw in training."""

    model: CCL
    checkpoint: Path
    seen: list[tuple[int, ...]]


def trained(root: Path, folder: Path, epochs: int = 1, **arguments: Any) -> Run:
    model, seen = ccl(**TILED, **arguments), []
    handle = model.model.network.teacher.register_forward_pre_hook(lambda _, x: seen.append(tuple(x[0].shape)))
    engine(folder, max_epochs=epochs, limit_val_batches=0).fit(model, data(root))
    handle.remove()
    return Run(model.eval(), last_checkpoint(folder), seen)


@pytest.fixture(scope="module")
def run(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(sample_root, tmp_path_factory.mktemp("run"), recipe="recommended", memory=20)


def test_a_step_takes_a_tile_of_each_image_and_a_calibration_looks_at_all(run: Run, sample_root: Path) -> None:
    # Of 12 images: three steps on four of them; then all four tiles of each, for the memory
    # once, for levels and limits once more as they are, and once as if photographed again.
    assert set(run.seen) == {(4, 3, 32, 64)}
    assert len(run.seen) == 3 + 3 * 4 * (1 + 2 + 2)
    assert run.model.model.memory.vectors.shape[:2] == (2, 20)
    assert_calibrated_for_its_weights(run.model, data(sample_root))


def test_a_checkpoint_knows_its_tiles_and_no_loader_makes_its_images_smaller(
    run: Run, sample_root: Path, tmp_path: Path
) -> None:
    """The loader of a datamodule resizes too, and is set up before the checkpoint is read."""
    model = CCL(backbone=SMALL["backbone"], image_size=(32, 32), visualizer=False)
    del model.given["image_size"]  # as if it were the default, which would make them larger
    loaded = CCL.load_from_checkpoint(run.checkpoint)
    ways = [(run.model, None), (loaded, None), (model, run.checkpoint)]
    own, *others = (engine(tmp_path).predict(way, datamodule=data(sample_root), ckpt_path=path) for way, path in ways)
    assert tuple(model.input_size) == tuple(loaded.input_size) == (56, 112)
    assert model.hparams["tiles"] == loaded.hparams["tiles"] == (2, 2)
    assert_same_state(model, run.model)
    for batch, expected in [pair for other in others for pair in zip(other, own, strict=True)]:
        torch.testing.assert_close(batch.anomaly_map, expected.anomaly_map)
        assert batch.explanation == expected.explanation
    for arguments in ({"tiles": (1, 1)}, {"tiles": [1, 2]}):
        with pytest.raises(InputError, match=r"model\.ckpt was trained with tiles=\(2, 2\), not tiles="):
            CCL.load_from_checkpoint(run.checkpoint, **arguments)
    assert CCL.load_from_checkpoint(run.checkpoint, tiles=[2, 2]).model.tiling.count == 4


def test_features_are_kept_for_each_tile_and_pseudo_classes_found_of_whole_images(
    sample_root: Path, tmp_path: Path
) -> None:
    """With the cache, the weights of three epochs become what they are without it."""
    options: dict[str, Any] = {"class_labels": "pseudo", "n_pseudo_classes": 2, "epochs": 3, "calibrate": False}
    plain = trained(sample_root, tmp_path / "plain", **options)
    cached = trained(sample_root, tmp_path / "cached", feature_cache=str(tmp_path), **options)
    assert len(plain.model.class_names) == 2
    assert cached.model.classes.index_of_image == plain.model.classes.index_of_image
    weights = plain.model.model.projections.state_dict()
    for name, weight in cached.model.model.projections.state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-3, atol=1e-4)
    assert sum(size[0] for size in cached.seen) < sum(size[0] for size in plain.seen)


def test_what_does_not_fit_the_tiles_is_refused() -> None:
    for arguments, message in (
        ({"pre_processor": PreProcessor(Resize((101, 112)))}, r"images of 101 × 112 pixels cannot be cut into tiles="),
        ({"tiles": [0, 2]}, r"tiles must be two whole numbers from 1 on, the rows and the columns, got \(0, 2\)"),
    ):
        with pytest.raises(InputError, match=message):
            CCL(**{**SMALL, **TILED, **arguments})
    CCL(**{**SMALL, **TILED}, pre_processor=PreProcessor(Resize((56, 112))))
