"""How long and how fast a model learns: by the recipe of its reconstruction network, where the user says nothing."""

import logging
import math
from typing import TYPE_CHECKING, Any

from anomalib import LearningType
from anomalib.models.components import AnomalibModule
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer

from anomalib_ccl.training.schedules import SCHEDULES, Progress, Schedule

if TYPE_CHECKING:
    # Not a base class: anomalib lists the direct subclasses of its own as models.
    Base = AnomalibModule
else:
    Base = object

logger = logging.getLogger(__name__)

# What Lightning trains for where a trainer is not told.
_LIGHTNING_EPOCHS = 1000


class FollowsRecipe(Base):
    """The part of a Lightning module that says how it learns.

    The module has a ``model``, whose ``network`` has a ``recipe``, and a ``schedule``, or None for the recipe's own.
    """

    model: Any  # with a ``network`` and ``projections``
    schedule: Schedule | None
    _steps: float = math.inf

    def setup(self, stage: str) -> None:
        """Train as long as the recipe says where the trainer was not told how long, and refuse what would spoil it.

        Args:
            stage: What the trainer is about to do.
        """
        super().setup(stage)
        if stage == "fit":
            limit_training(self.trainer, self.model.network.recipe)
            _refuse_averages(self.trainer)

    @property
    def progress(self) -> Progress:
        """How far the training is."""
        return Progress(self.global_step, self._steps)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Configure the recipe's optimizer and its schedule.

        Returns:
            The optimizer, and its schedule, which counts steps.
        """
        recipe = self.model.network.recipe
        self._steps = self.trainer.estimated_stepping_batches
        optimizer = recipe.optimizer(self.model.network, self.model.projections)
        schedule = recipe.schedule if self.schedule is None else SCHEDULES[self.schedule]
        scheduler = schedule(optimizer, self._steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Keep the norm of all gradients at most the recipe's, where the trainer was not told a value.

        Not among the trainer's arguments below, because anomalib lets those win over the user's.

        Args:
            optimizer: The optimizer whose weights have the gradients.
            gradient_clip_val: What the trainer was told; 0 is no clipping, None nothing.
            gradient_clip_algorithm: What the trainer was told.
        """
        value = self.model.network.recipe.gradient_norm if gradient_clip_val is None else gradient_clip_val
        self.clip_gradients(optimizer, value, gradient_clip_algorithm)

    @property
    def learning_type(self) -> LearningType:
        """One-class learning: only normal images are trained on."""
        return LearningType.ONE_CLASS

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Trainer arguments that the model needs."""
        return {"num_sanity_val_steps": 0}


def limit_training(trainer: Trainer, recipe: Any) -> None:  # noqa: ANN401  # of a network; the model's room is above this
    """Train as long as a recipe says where a trainer was not told how long.

    Args:
        trainer: The trainer of a training that is about to start.
        recipe: The recipe of the network that is trained.
    """
    if trainer.max_epochs != _LIGHTNING_EPOCHS:
        return
    length = f"{recipe.epochs} epochs" if recipe.steps is None else f"{recipe.steps} steps"
    logger.info(
        "Training for %s, as in the paper, whose batches have %d images; max_epochs or max_steps sets another length.",
        length,
        recipe.batch_size,
    )
    trainer.fit_loop.max_epochs = recipe.epochs if recipe.steps is None else -1
    if recipe.steps is not None:
        trainer.fit_loop.epoch_loop.max_steps = recipe.steps


def _refuse_averages(trainer: Trainer) -> None:
    """Refuse Lightning's averages of the weights, for which nothing of what a validation finds would be true."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging | StochasticWeightAveraging):
            msg = (
                f"{type(callback).__name__} would give CCL other weights than those that its thresholds and its "
                "calibration are found for; take it away"
            )
            raise ValueError(msg)
