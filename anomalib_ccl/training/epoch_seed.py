"""Random numbers that a resumed training draws as if it had never stopped."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class EpochSeed(Callback):
    """Seeds torch before the first step of each epoch, with the seed of the run, the epoch and the process's rank.

    The seed of the run is the one that torch had, and checkpoints keep it; Lightning's own hold no random state. So a
    training that is resumed after an epoch draws the views, the noise and the negatives that it would have drawn
    without the interruption, and each process draws its own.
    """

    def __init__(self) -> None:
        self._seed = torch.initial_seed()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give all processes the seed of the first."""
        del pl_module
        self._seed = trainer.strategy.broadcast(self._seed)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Seed the epoch, if this is its first batch."""
        del pl_module, batch
        # Not at the start of the epoch: only an epoch that is not resumed draws a seed for its data loader after that.
        if batch_idx == 0:
            sequence = np.random.SeedSequence([self._seed, trainer.current_epoch, trainer.global_rank])
            torch.manual_seed(int(sequence.generate_state(1)[0]))

    def state_dict(self) -> dict[str, Any]:
        """Give the seed of the run."""
        return {"seed": self._seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the seed of the run."""
        self._seed = state_dict["seed"]
