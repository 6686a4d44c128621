"""One shape for the callbacks that look at what a model predicts."""

from typing import ClassVar

from anomalib.data import ImageBatch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage


class PredictionObserver(Callback):
    """A callback that sees each batch of predictions in :meth:`observe`, whichever of Lightning's loops makes them.

    Attributes:
        stages: The loops that it looks at; validation within a training is ``RunningStage.VALIDATING`` too.
    """

    stages: ClassVar[frozenset[RunningStage]]

    def observe(self, trainer: Trainer, pl_module: LightningModule, batch: ImageBatch, dataloader_idx: int) -> None:
        """Look at a batch with its predictions.

        Args:
            trainer: The trainer that makes the pass.
            pl_module: The model.
            batch: Images with their paths, predictions and masks.
            dataloader_idx: Number of the data loader that it is of.
        """
        raise NotImplementedError

    def _of_any_loop(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Pass a batch on if the loop is one of those that are looked at."""
        del outputs, batch_idx
        if trainer.state.stage in self.stages:
            self.observe(trainer, pl_module, batch, dataloader_idx)

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _of_any_loop
