"""Trainings that go on from the checkpoint of an earlier one."""

from typing import Any

from lightning.pytorch import Trainer

from anomalib_ccl.training.callers import caller


def start_from_weights(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Leave of a checkpoint what a training on other data can begin with: the weights.

    The progress of the loops, the optimizers and their schedules, and what callbacks and the datamodule remember belong
    to the training that the checkpoint is of.

    Args:
        checkpoint: What was saved; changed in place.
        trainer: The trainer of the new training.
    """
    forget_progress(checkpoint, type(trainer.datamodule))  # type: ignore[attr-defined]


def forget_progress(checkpoint: dict[str, Any], datamodule: type) -> None:
    """Leave of a checkpoint what no training has to do with, so that a training starts from its weights.

    Args:
        checkpoint: What was saved; changed in place.
        datamodule: The class whose objects may have left something in it.
    """
    checkpoint.pop("loops", None)
    checkpoint.pop(datamodule.__qualname__, None)
    checkpoint.update(callbacks={}, optimizer_states=[], lr_schedulers=[])


def is_test_after_training() -> bool:
    """Tell whether the checkpoint that is loaded is the one that ``anomalib train --ckpt_path`` began with.

    ``Engine.train`` trains on from a checkpoint and then tests that checkpoint, not what it has trained: the results
    would be those of the old weights, which would also take the place of the new ones in the model.

    Returns:
        True within the test at the end of ``Engine.train``.
    """
    return caller("Trainer", "test") is not None and caller("Engine", "train") is not None
