"""A training that could not write its results does not start."""

from pathlib import Path

import pytest
import torch
from anomalib.engine import Engine

from anomalib_ccl import CCL, MultiCategory
from anomalib_ccl.plugin.run_folder import RunFolder, check_folder, checkpoint_size


@pytest.fixture
def model() -> CCL:
    return CCL("mobilenetv3_small_100", pre_trained=False, image_size=(64, 64), visualizer=False)


def fit(model: CCL, root: Path, folder: Path) -> Engine:
    engine = Engine(
        callbacks=[RunFolder()], max_epochs=1, default_root_dir=folder, accelerator="cpu", enable_progress_bar=False
    )
    engine.fit(model, datamodule=MultiCategory(root=root, train_batch_size=8, num_workers=0))
    return engine


def test_size_of_a_checkpoint_is_known_beforehand(model: CCL, sample_root: Path, tmp_path: Path) -> None:
    expected = checkpoint_size(model)
    engine = fit(model, sample_root, tmp_path)
    assert Path(engine.best_model_path).stat().st_size == pytest.approx(expected, rel=0.1)


def test_training_whose_checkpoints_have_no_room_does_not_start(model: CCL, sample_root: Path, tmp_path: Path) -> None:
    # As large as it says, but without a byte of memory.
    model.register_buffer("huge", torch.zeros(1).expand(10**17))
    with pytest.raises(OSError, match=rf"{tmp_path}.* has \d+ MB free for checkpoints of \d+ MB; free some space, or"):
        fit(model, sample_root, tmp_path)
    assert not hasattr(model, "_second_view")


def test_folder_that_cannot_be_made_is_named_with_reason_and_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = f"results cannot be written to {tmp_path}/file/run: Not a directory; choose another .* --default_root_dir"
    with pytest.raises(OSError, match=message):
        check_folder(tmp_path / "file/run", size=0)


def test_a_test_before_the_first_training_leaves_room_for_that(model: CCL, sample_root: Path, tmp_path: Path) -> None:
    engine = Engine(callbacks=[RunFolder()], default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
    engine.test(model, datamodule=MultiCategory(root=sample_root, categories=["brick"], num_workers=0))
    folder = tmp_path / "CCL/MultiCategory"
    assert Path(engine.trainer.default_root_dir) == folder / "v0"
    fit(model, sample_root, tmp_path)
    assert (folder / "latest").resolve() == folder / "v1"
