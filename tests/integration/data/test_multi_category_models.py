"""MultiCategory under anomalib's own Engine, with models of several kinds, and under distributed training."""

import json

import pytest
import torch
from anomalib.engine import Engine
from anomalib.models import Padim, ReverseDistillation
from lightning.pytorch import LightningModule, Trainer

from anomalib_ccl.data import MultiCategory

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def padim() -> Padim:
    return Padim("resnet18", pre_trained=False, pre_processor=Padim.configure_pre_processor((64, 64)))


def reverse_distillation() -> ReverseDistillation:
    pre_processor = ReverseDistillation.configure_pre_processor((64, 64))
    return ReverseDistillation("resnet18", pre_trained=False, pre_processor=pre_processor)


@pytest.mark.parametrize("make_model", [padim, reverse_distillation])
def test_model_is_trained_and_tested_on_all_categories(make_model, sample_root, tmp_path):
    torch.manual_seed(0)
    datamodule = MultiCategory("MVTecAD", sample_root, train_batch_size=8, num_workers=0, seed=0)
    engine = Engine(default_root_dir=tmp_path, max_epochs=1, accelerator="cpu", **QUIET)
    model = make_model()
    engine.fit(model, datamodule=datamodule)
    (results,) = engine.test(model, datamodule=datamodule)
    # 6 categories with 6 training images each, in batches of 8.
    assert len(datamodule.train_dataloader()) == 5
    assert engine.trainer.global_step == 5
    assert 0 <= results["image_AUROC"] <= 1
    assert 0 <= results["pixel_AUROC"] <= 1


class BatchRecorder(LightningModule):
    """Learns nothing and keeps the image paths of each training batch of each epoch, in a file if it is given one."""

    def __init__(self, folder=None):
        super().__init__()
        self.folder = folder
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.epochs = []

    def on_train_epoch_start(self):
        self.epochs.append([])

    def training_step(self, batch):
        self.epochs[-1].append(batch.image_path)
        return self.weight * 0

    def on_train_end(self):
        if self.folder:
            (self.folder / f"{self.global_rank}.json").write_text(json.dumps(self.epochs))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("of_trainer", "of_datamodule", "trained"), [(3, 2, 2), (1, 2, 1), (-1, 2, 2), (2, None, 2), (2, -1, 2)]
)
def test_smaller_limit_of_epochs_counts(of_trainer, of_datamodule, trained, sample_root):
    datamodule = MultiCategory(
        "MVTecAD", sample_root, categories=["brick", "grass"], max_epochs=of_datamodule, num_workers=0
    )
    model = BatchRecorder()
    trainer = Trainer(max_epochs=of_trainer, accelerator="cpu", enable_checkpointing=False, **QUIET)
    trainer.fit(model, datamodule=datamodule)
    assert len(model.epochs) == trained
    assert len({str(batches) for batches in model.epochs}) == trained  # each has an order of its own


def test_each_process_gets_whole_batches_of_two_categories(sample_root, tmp_path):
    datamodule = MultiCategory("MVTecAD", sample_root, train_batch_size=4, num_workers=0, seed=0)
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", devices=2, strategy="ddp_fork", enable_checkpointing=False, **QUIET
    )
    trainer.fit(BatchRecorder(tmp_path), datamodule=datamodule)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for epoch in range(2):
        batches = ranks[0][epoch] + ranks[1][epoch]
        # 36 images in batches of 4 on two processes: 5 batches on each.
        assert [len(ranks[rank][epoch]) for rank in range(2)] == [5, 5]
        for batch in batches:
            categories = [path.split("/")[-4] for path in batch]
            assert len(set(batch)) == 4
            assert len(set(categories)) >= 2
        assert len({path for batch in batches for path in batch}) == 36
    assert ranks[0][0] != ranks[0][1]
