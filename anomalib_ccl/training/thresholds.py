"""The thresholds of a model, set outside of Lightning's validation as that would set them."""

import math
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from anomalib.post_processing import PostProcessor
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader

from anomalib_ccl.training.post_processor import LimitPostProcessor, set_to_limit
from anomalib_ccl.training.training_pass import with_progress


@torch.no_grad()
def set_thresholds(trainer: Trainer, model: Any) -> None:  # noqa: ANN401
    """Score the validation images of a training and have the model's post-processor set its thresholds by them.

    Nothing else of a validation happens: no metric, no logging, no other callback. Where there are no validation
    images, the thresholds of a calibrated model are the limits of the classes.

    Args:
        trainer: The trainer of a training.
        model: Its model, whose weights and calibration are final.
    """
    post_processor, pre_processor = model.post_processor, model.pre_processor
    if not isinstance(post_processor, PostProcessor) or isinstance(post_processor, LimitPostProcessor):
        return
    training = model.training
    model.eval()
    scored = False
    with isolate_rng(), trainer.precision_plugin.val_step_context():
        for loader, limit in _validation_loaders(trainer):
            batches = islice(_anew(loader), None if math.isinf(limit) else int(limit))
            for index, batch in enumerate(with_progress(batches, limit, trainer.progress_bar_callback, "Thresholds")):
                on_device = trainer.strategy.batch_to_device(batch)
                if pre_processor is not None:
                    pre_processor.on_validation_batch_start(trainer, model, on_device, index)
                outputs = model.validation_step(on_device, index)
                post_processor.on_validation_batch_end(trainer, model, outputs)
                scored = True
    if scored:
        post_processor.on_validation_epoch_end(trainer, model)
    elif model.model.calibration.is_calibrated:
        set_to_limit(post_processor)
    model.train(training)


def _validation_loaders(trainer: Trainer) -> list[tuple[DataLoader, float]]:
    """The loaders of a training's validation images, each with the number of its batches that are looked at."""
    if not trainer.enable_validation:
        return []
    loop = trainer.fit_loop.epoch_loop.val_loop
    # Lightning has none before the first validation that is due.
    stage, trainer.state.stage = trainer.state.stage, RunningStage.VALIDATING
    loop.setup_data()
    trainer.state.stage = stage
    return list(zip(CombinedLoader(trainer.val_dataloaders).flattened, loop.max_batches, strict=True))


def _anew(loader: Any) -> Iterable[Any]:  # noqa: ANN401  # whatever a user gives to Lightning
    """Give a loader fresh workers: the interrupt that ends a training may have ended those that it has."""
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
        return loader
    return DataLoader(
        loader.dataset,
        batch_sampler=loader.batch_sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
    )
