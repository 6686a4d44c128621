"""A callback for commands that tests run: what each process of a training saw and learned, and a way to kill it."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

# anomalib 2.7 does not seed, whatever its --seed_everything says.
torch.manual_seed(int(os.environ.get("SEED", "0")))


class Recorder(Callback):
    """Write ``<rank>.json``, with a row for each step, and ``<rank>.pt``, the model's state at the end.

    Args:
        folder: Folder to write to.
        kill_at: Step after which the process kills itself; 0 for never.
    """

    def __init__(self, folder: str, kill_at: int = 0) -> None:
        self.folder = Path(folder)
        self.kill_at = kill_at
        self.steps: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add a row."""
        rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        labels = pl_module.classes.labels(batch.image_path).tolist()
        row = {"images": batch.image_path, "labels": labels, "rates": rates, "loss": outputs["loss"].item()}
        norm = torch.nn.utils.get_total_norm([p.grad for p in pl_module.parameters() if p.grad is not None]).item()
        self.steps.append({"epoch": trainer.current_epoch, "gradient_norm": norm, **row})
        if trainer.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(self.steps))
        torch.save(pl_module.model.state_dict(), self.folder / f"{trainer.global_rank}.pt")
