"""Training on two processes: the losses and gradients of one batch, and a whole run typed as a user types it."""

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.engine import Engine
from recorded import run, steps
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from anomalib_ccl import CCL, GlobalContrastiveLoss, MultiCategory
from anomalib_ccl.training.calibrate import calibrate
from anomalib_ccl.training.gather import gathered

LABELS = [0, 1, 0, 2, 1, 2, 0, 1]


class TrainingStep(nn.Module):
    """CCL's training step as a module's forward, which is how Lightning hands it to DDP.

    The local loss draws its negatives at random, and the normalisation layers take their statistics, from the images
    of one process: both are left out.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = CCL("resnet18", pre_trained=False, image_size=(64, 64), noise_probability=0, local_weight=0)
        self.model.classes.index_of_image = {str(i): label for i, label in enumerate(LABELS)}
        self.model._second_view = lambda images: images.flip(-1).square()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    def forward(self, part: slice) -> Tensor:
        images = torch.rand(len(LABELS), 3, 64, 64, generator=torch.Generator().manual_seed(1))
        paths = [str(i) for i in range(len(LABELS))]
        return self.model.training_step(ImageBatch(image=images[part], image_path=paths[part]))["loss"]


class GlobalLoss(nn.Module):
    """The global loss of the embeddings that a layer makes of images and of their second views."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 8)

    def forward(self, part: slice) -> Tensor:
        inputs = torch.randn(2, len(LABELS), 16, generator=torch.Generator().manual_seed(1))[:, part]
        labels = torch.tensor(LABELS)[part].repeat(2)
        return GlobalContrastiveLoss()(*gathered(self.layer(inputs.flatten(0, 1)), labels))


def gradients(module: nn.Module, part: slice) -> dict[str, Tensor]:
    """The loss of a part of the batch and its gradients, by the names of the parameters."""
    loss = module(part)
    loss.backward()
    gradients = {name.removeprefix("module."): p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


def train_a_part(rank: int, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    halves, uneven = (slice(0, 4), slice(4, 8)), (slice(0, 3), slice(3, 8))
    step = gradients(DistributedDataParallel(TrainingStep()), halves[rank])
    loss = gradients(DistributedDataParallel(GlobalLoss()), uneven[rank])
    torch.save((step, loss), folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_loss_and_gradients_of_two_processes_are_those_of_one_with_the_whole_batch(tmp_path: Path) -> None:
    multiprocessing.spawn(train_a_part, (tmp_path,), nprocs=2)
    steps, losses = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)
    whole = slice(None)
    for module, found in ((TrainingStep(), steps), (GlobalLoss(), losses)):
        expected = gradients(module, whole)
        assert len(expected) > 2
        mean = {name: (found[0][name] + found[1][name]) / 2 for name in expected}
        torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def trained(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run over two epochs, six steps each. Without validation, nothing but training aligns states."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    two = ["--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.max_epochs=2", "--trainer.gradient_clip_val=0.1"]
    data = ["--data.train_batch_size=3", "--data.num_workers=0", "--data.val_split_mode=none"]
    status, output = run(folder, "train", sample_root, *two, *data)
    assert status == 0, output
    assert output.count("Test results per category") == 1
    return folder


def results(folder: Path) -> Path:
    return folder / "results/CCL/MultiCategory/latest"


@pytest.mark.slow
def test_each_process_has_batches_of_its_own_and_together_they_see_each_image_once(
    trained: Path, sample_root: Path
) -> None:
    images = {str(path) for path in sample_root.glob("*/train/good/*.png")}
    by_rank = [steps(trained, rank) for rank in range(2)]
    assert [len(rows) for rows in by_rank] == [12, 12]
    for epoch in range(2):
        rows = [row for rank in by_rank for row in rank if row["epoch"] == epoch]
        assert Counter(image for row in rows for image in row["images"]) == dict.fromkeys(images, 1)
        assert all(len(set(row["labels"])) == 2 for row in rows)
    assert by_rank[0][0]["images"] != by_rank[0][6]["images"]


@pytest.mark.slow
def test_norm_of_the_gradients_is_what_the_command_line_says(trained: Path) -> None:
    assert all(
        row["gradient_norm"] == pytest.approx(0.1, rel=1e-3) for rank in range(2) for row in steps(trained, rank)
    )


@pytest.mark.slow
def test_all_processes_end_with_the_same_weights_statistics_and_calibration(trained: Path) -> None:
    first, second = (torch.load(trained / f"{rank}.pt") for rank in range(2))
    assert len(first["calibration.prototypes"]) == 6
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_training_that_does_not_end_with_a_validation_is_complete(sample_root: Path, tmp_path: Path) -> None:
    two = ["--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.max_steps=4", "--trainer.max_epochs=9"]
    interval = ["--trainer.check_val_every_n_epoch=2", "--data.train_batch_size=6", "--data.num_workers=0"]
    status, output = run(tmp_path / "run", "fit", sample_root, *two, *interval)
    assert status == 0, output
    checkpoint = results(tmp_path / "run") / "weights/lightning/model.ckpt"
    model = CCL.load_from_checkpoint(checkpoint, visualizer=False)
    for rank in range(2):
        in_memory = torch.load(tmp_path / f"run/{rank}.pt")
        assert all(torch.equal(in_memory[name], value) for name, value in model.model.state_dict().items())

    kept = {name: value.clone() for name, value in model.post_processor.named_buffers(recurse=False)}
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
    engine.validate(model, datamodule=MultiCategory(root=sample_root, num_workers=0))
    assert not kept["_image_threshold"].isnan()
    torch.testing.assert_close(dict(model.post_processor.named_buffers(recurse=False)), kept)


@pytest.mark.slow
def test_results_of_all_processes_are_in_one_folder(trained: Path, sample_root: Path) -> None:
    assert {path.name for path in results(trained).parent.iterdir()} == {"v0", "latest"}
    expected = {f"{path.parts[-4]}/{path.parts[-2]}/{path.name}" for path in sample_root.glob("*/test/*/*.png")}
    images = results(trained) / "images"
    assert {path.relative_to(images).as_posix() for path in images.rglob("*.png")} == expected


@pytest.mark.slow
def test_one_process_calibrates_and_reports_the_same_with_the_same_weights(
    trained: Path, sample_root: Path, tmp_path: Path
) -> None:
    checkpoint = results(trained) / "weights/lightning/model.ckpt"
    model = CCL.load_from_checkpoint(checkpoint, visualizer=False)
    data = MultiCategory(root=sample_root, train_batch_size=3, num_workers=0, val_split_mode="none")
    engine = Engine(max_epochs=2, default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
    engine.fit(model, datamodule=data, ckpt_path=checkpoint)  # its two epochs are over: it gets the data, no more
    calibration = model.model.calibration
    expected = {name: buffer.clone() for name, buffer in calibration.named_buffers()}
    for buffer in calibration.buffers():
        buffer.zero_()
    model.classes.find(model)
    calibrate(model, model.model, model.classes.labels)
    torch.testing.assert_close(dict(calibration.named_buffers()), expected)

    engine.test(model, datamodule=data)
    reports = [
        pd.read_csv(folder / "categories.csv") for folder in (results(trained), Path(engine.trainer.default_root_dir))
    ]
    pd.testing.assert_frame_equal(*reports, atol=1e-4, rtol=0)
