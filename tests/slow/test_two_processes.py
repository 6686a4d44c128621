"""Training on two processes, typed as a user types it."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from recorded import run, steps

from anomalib_ccl import CCL


@pytest.fixture(scope="module")
def trained(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run over two epochs, six steps each. Without validation, nothing but training aligns states."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    two = ["--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.max_epochs=2", "--trainer.gradient_clip_val=0.1"]
    images = ["--data.train_batch_size=3", "--data.num_workers=0", "--data.val_split_mode=none"]
    status, output = run(folder, "train", sample_root, *two, *images)
    assert status == 0, output
    assert output.count("Test results per category") == 1
    return folder


def results(folder: Path) -> Path:
    """anomalib makes a folder for each process, and all write into that of the first."""
    return folder / "results/CCL/MultiCategory/v0"


def test_each_process_has_batches_of_its_own_and_together_they_see_each_image_once(
    trained: Path, sample_root: Path
) -> None:
    images = {str(path) for path in sample_root.glob("*/train/good/*.png")}
    by_rank = [steps(trained, rank) for rank in range(2)]
    assert [len(rows) for rows in by_rank] == [12, 12]
    for epoch in range(2):
        rows = [row for rank in by_rank for row in rank if row["epoch"] == epoch]
        assert Counter(image for row in rows for image in row["images"]) == dict.fromkeys(images, 1)
    assert by_rank[0][0]["images"] != by_rank[0][6]["images"]
    assert all(row["gradient_norm"] == pytest.approx(0.1, rel=1e-3) for rows in by_rank for row in rows)


def test_all_processes_end_with_the_state_of_the_checkpoint_and_their_pictures_lie_together(
    trained: Path, sample_root: Path
) -> None:
    model = CCL.load_from_checkpoint(results(trained) / "weights/lightning/model.ckpt")
    assert len(model.model.calibration.prototypes) == 6
    for rank in range(2):
        in_memory = torch.load(trained / f"{rank}.pt")
        assert all(torch.equal(in_memory[name], value) for name, value in model.model.state_dict().items())
    expected = {f"{path.parts[-4]}/{path.parts[-2]}/{path.name}" for path in sample_root.glob("*/test/*/*.png")}
    images = results(trained) / "images"
    assert {path.relative_to(images).as_posix() for path in images.rglob("*.png")} == expected
