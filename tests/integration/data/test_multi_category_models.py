"""MultiCategory under anomalib's own Engine, with models of several kinds, and under distributed training."""

from __future__ import annotations

import json

import pytest
import torch
from anomalib.engine import Engine
from anomalib.models import Dinomaly, Padim, ReverseDistillation
from anomalib.models.components import TimmFeatureExtractor
from anomalib.models.image.dinomaly import torch_model as dinomaly_network
from lightning.pytorch import LightningModule, Trainer

from anomalib_ccl.data import MultiCategory

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def padim() -> Padim:
    return Padim("resnet18", pre_trained=False, pre_processor=Padim.configure_pre_processor((64, 64)))


def reverse_distillation() -> ReverseDistillation:
    pre_processor = ReverseDistillation.configure_pre_processor((64, 64))
    return ReverseDistillation("resnet18", pre_trained=False, pre_processor=pre_processor)


def dinomaly() -> Dinomaly:
    pre_processor = Dinomaly.configure_pre_processor((56, 56), 56)
    return Dinomaly("vit_small_patch14_reg4_dinov2", pre_processor=pre_processor)


@pytest.fixture
def random_encoder(monkeypatch):
    """Dinomaly has no argument for it, and its weights come from a hub."""

    def without_weights(*, pre_trained, **arguments):
        assert pre_trained
        return TimmFeatureExtractor(pre_trained=False, **arguments)

    monkeypatch.setattr(dinomaly_network, "TimmFeatureExtractor", without_weights)


@pytest.mark.usefixtures("random_encoder")
@pytest.mark.parametrize("make_model", [padim, reverse_distillation, dinomaly])
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
    """Learns nothing and keeps the image paths of each training batch of each epoch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.epochs = []

    def on_train_epoch_start(self):
        self.epochs.append([])

    def training_step(self, batch):
        self.epochs[-1].append(batch.image_path)
        return self.weight * 0

    def validation_step(self, batch):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class RankRecorder(BatchRecorder):
    """Writes what its process has seen to a file."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_train_end(self):
        (self.folder / f"{self.global_rank}.json").write_text(json.dumps(self.epochs))


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


def test_each_epoch_has_another_order(sample_root):
    datamodule = MultiCategory("MVTecAD", sample_root, num_workers=0, train_batch_size=4, seed=0)
    model = BatchRecorder()
    trainer = Trainer(max_epochs=2, accelerator="cpu", enable_checkpointing=False, **QUIET)
    trainer.fit(model, datamodule=datamodule)
    first, second = model.epochs
    assert first != second
    assert len({path for batch in first for path in batch}) == 36
    assert len({path for batch in second for path in batch}) == 36


def test_model_is_trained_without_validation_images(sample_root):
    datamodule = MultiCategory("MVTecAD", sample_root, val_split_mode="none", num_workers=0)
    model = BatchRecorder()
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, **QUIET)
    trainer.fit(model, datamodule=datamodule)
    assert len(model.epochs) == 1


@pytest.mark.slow
def test_each_process_gets_whole_batches_of_two_categories(sample_root, tmp_path):
    datamodule = MultiCategory("MVTecAD", sample_root, train_batch_size=4, num_workers=0, seed=0)
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", devices=2, strategy="ddp_fork", enable_checkpointing=False, **QUIET
    )
    trainer.fit(RankRecorder(tmp_path), datamodule=datamodule)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for epoch in range(2):
        batches = ranks[0][epoch] + ranks[1][epoch]
        # 36 images in batches of 4 on two processes: 5 batches on each.
        assert [len(ranks[rank][epoch]) for rank in range(2)] == [5, 5]
        for batch in batches:
            categories = [path.split("/")[-4] for path in batch]
            assert len(set(batch)) == 4
            assert 2 <= len(set(categories)) < 4
        assert len({path for batch in batches for path in batch}) == 36
    assert ranks[0][0] != ranks[0][1]
