"""How a model learns: how long, how fast, and what it refuses."""

import math
from typing import TYPE_CHECKING, Any

from anomalib.models.components import AnomalibModule
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from anomalib_ccl.model.reconstruction.recipe import SCHEDULES, Progress, Schedule
from anomalib_ccl.model.torch_model import CCLModel
from anomalib_ccl.training.length import check_training, limit_training

if TYPE_CHECKING:
    # Not a base class: anomalib lists the direct subclasses of its own as models.
    _Base = AnomalibModule
else:
    _Base = object


class Learning(_Base):
    """The part of a Lightning module that says how it learns: by its network's recipe, where the user says nothing.

    Attributes:
        model: The network.
        schedule: How the learning rates fall; None is the recipe's way.
    """

    model: CCLModel
    schedule: Schedule | None
    _steps: float = math.inf
    _knows_length: bool = True

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Trainer arguments that the model needs."""
        only_once = {"max_epochs": 1, "limit_train_batches": 1}  # a memory is built when the training ends
        return {"num_sanity_val_steps": 0, **({} if self.model.reconstructs else only_once)}

    @LightningModule.trainer.setter  # type: ignore[attr-defined]
    def trainer(self, trainer: Trainer | None) -> None:
        """Take a trainer, and note whether it knows how long to train: Lightning soon sets 1,000 epochs where not."""
        if trainer is not None and trainer is not self._trainer:
            timed = any(isinstance(callback, Timer) for callback in trainer.callbacks)  # type: ignore[attr-defined]
            self._knows_length = trainer.max_epochs is not None or trainer.max_steps != -1 or timed
        LightningModule.trainer.fset(self, trainer)  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        """Train as long as the network's recipe says where the trainer was not told, and refuse what would spoil it."""
        super().setup(stage)
        if stage == "fit":
            check_training(self.trainer)
            if not self.model.reconstructs:
                self.trainer.fit_loop.max_epochs = 1
            elif not self._knows_length:
                limit_training(self.trainer, self.model.network.recipe)

    def on_fit_start(self) -> None:
        """Load the teacher's weights if no checkpoint has brought them along, before there is anything to lose."""
        super().on_fit_start()
        if self.model.network.teacher is not None:
            self.model.network.teacher.load_awaited()

    @property
    def progress(self) -> Progress:
        """How far the training is."""
        return Progress(self.global_step, self._steps)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Configure the optimizer of the network's recipe and its schedule, which counts steps."""
        if not self.model.reconstructs:
            return None
        recipe = self.model.network.recipe
        self._steps = self.trainer.estimated_stepping_batches
        optimizer = recipe.optimizer(self.model.network, self.model.projections)
        schedule = recipe.schedule if self.schedule is None else SCHEDULES[self.schedule]
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule(optimizer, self._steps), "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Keep the norm of all gradients at most the recipe's, where the trainer was not told a value.

        Not among the trainer's arguments, because anomalib lets those win over the user's.
        """
        if gradient_clip_val is None and gradient_clip_algorithm != "value":
            gradient_clip_val = self.model.network.recipe.gradient_norm
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def gathered(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Join embeddings and classes of all processes; their gradients are those of one process with all images."""
        if self._trainer is None or self._trainer.world_size == 1:
            return embeddings, labels
        every, classes = self.all_gather(embeddings, sync_grads=True), self.all_gather(labels)
        return every.flatten(0, 1), classes.flatten()  # type: ignore[union-attr]
