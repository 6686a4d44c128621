"""The report of each category after a test of any model: a table, a CSV file and the means."""

import logging
from pathlib import Path

import pandas as pd
import torch
from anomalib.data import ImageBatch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from rich.console import Console

from anomalib_ccl.data.multi_category import MultiCategory
from anomalib_ccl.metrics.benchmark import keep_benchmark_rows
from anomalib_ccl.metrics.category import FIGURES, CategoryMetrics, with_mean
from anomalib_ccl.metrics.table import report_table

logger = logging.getLogger(__name__)


class CategoryReport(Callback):
    """Reports each category's figures after a test on :class:`~anomalib_ccl.data.MultiCategory`.

    Prints a table, writes it to ``categories.csv`` in the Trainer's ``default_root_dir`` (and, within
    ``anomalib benchmark``, beside the benchmark's results), and logs the mean over the categories as
    ``mean_image_AUROC``, ``mean_image_AP``, ``mean_image_F1Max``, ``mean_pixel_AUROC``, ``mean_pixel_AP``,
    ``mean_pixel_F1Max`` and ``mean_pixel_AUPRO``. The keys are the same for every model and data set; a mean
    is NaN if no category has the figure, as without masks. Does nothing on any other data.

    Works on the scores that the model gives, before anomalib's post-processor normalises them and cuts them
    off at 0 and 1. Several processes report what one would.

    Example:
        >>> from anomalib.engine import Engine
        >>> engine = Engine(callbacks=[CategoryReport()])  # needless where the plugin is installed
    """

    def __init__(self) -> None:
        self._metrics: CategoryMetrics | None = None
        self._index: dict[str, int] = {}
        self._report = pd.DataFrame()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Get ready for the images of the test set."""
        del pl_module
        self._metrics = None
        datamodule = getattr(trainer, "datamodule", None)
        dataset = getattr(trainer.test_dataloaders, "dataset", None)
        # A Trainer keeps the datamodule of an earlier call when it is later given dataloaders.
        if isinstance(datamodule, MultiCategory) and dataset is datamodule.test_data:
            samples = datamodule.test_data.samples
            self._metrics = CategoryMetrics(samples["category"], samples["label_index"])
            self._index = {path: index for index, path in enumerate(samples["image_path"])}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch of predictions."""
        del pl_module, outputs, batch_idx, dataloader_idx
        if self._metrics is None:
            return
        index = torch.tensor([self._index[path] for path in batch.image_path or ()])
        # Lightning gives image i to process i % world_size and fills up the last batches with repeated ones.
        own = index % trainer.world_size == trainer.global_rank
        predictions = (batch.pred_score, batch.anomaly_map, batch.gt_mask)
        self._metrics.update(index[own], *(None if x is None else x[own] for x in predictions))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the figures and log their means."""
        if self._metrics is None:
            return
        if trainer.world_size > 1:
            self._metrics.to(trainer.strategy.root_device)  # where processes can exchange tensors
        self._report = with_mean(self._metrics.compute())
        means = self._report.iloc[-1]
        pl_module.log_dict({f"mean_{name}": means[name] for name in FIGURES}, sync_dist=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table and write the files."""
        del pl_module
        if self._metrics is None or not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / "categories.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._report.to_csv(path, index=False)
        path = keep_benchmark_rows(self._report) or path
        Console().print(report_table(self._report))
        logger.info("The results of each category are in %s", path)
