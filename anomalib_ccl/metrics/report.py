"""The report of each category after a test of any model: a table, a CSV file and the means."""

import logging
from pathlib import Path

import pandas as pd
from anomalib.data import ImageBatch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from rich.console import Console

from anomalib_ccl.metrics.benchmark import keep_benchmark_rows
from anomalib_ccl.metrics.category import FIGURES
from anomalib_ccl.metrics.collector import Collector, images_of
from anomalib_ccl.metrics.observer import PredictionObserver
from anomalib_ccl.metrics.table import report_table

logger = logging.getLogger(__name__)


class CategoryReport(PredictionObserver):
    """Reports each category's figures after a test on :class:`~anomalib_ccl.data.MultiCategory`.

    Prints a table, writes it to ``categories.csv`` in the Trainer's ``default_root_dir`` (and, within
    ``anomalib benchmark``, beside the benchmark's results, with the score of each image), and logs the mean over the
    categories as ``mean_image_AUROC``, ``mean_image_AP``, ``mean_image_F1Max``, ``mean_pixel_AUROC``,
    ``mean_pixel_AP``, ``mean_pixel_F1Max``, ``mean_pixel_AUPRO`` and ``mean_class_accuracy``, and the
    :class:`~anomalib_ccl.metrics.embedding.EmbeddingVMeasure` as ``embedding_V_measure``; the last two are
    known of CCL. The keys are the same for every model and data set; a value is NaN if there is no such figure, as
    without masks. Does nothing on any other data.

    Works on the scores that the model gives, before anomalib's post-processor normalises them and cuts them
    off at 0 and 1. Several processes report what one would.

    Example:
        >>> from anomalib.engine import Engine
        >>> engine = Engine(callbacks=[CategoryReport()])  # needless where the plugin is installed
    """

    stages = frozenset({RunningStage.TESTING})

    def __init__(self) -> None:
        self._collector: Collector | None = None
        self._report = pd.DataFrame()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Get ready for the images of the test set."""
        data = images_of(trainer, trainer.test_dataloaders, "test_data")
        self._collector = None if data is None else Collector(data, pl_module)
        if data is not None:
            trainer.test_loop.verbose = False  # of this test, whose own table would say all again

    def observe(self, trainer: Trainer, pl_module: LightningModule, batch: ImageBatch, dataloader_idx: int) -> None:
        """Add a batch of predictions."""
        del pl_module, dataloader_idx
        if self._collector is not None:
            self._collector.add(trainer, batch)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the figures and log their means."""
        if self._collector is None:
            return
        self._report = self._collector.compute(trainer)
        means = self._report.iloc[-1]
        pl_module.log_dict({f"mean_{name}": means[name] for name in FIGURES}, sync_dist=True)
        pl_module.log("embedding_V_measure", self._collector.v_measure(), sync_dist=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table and write the files."""
        del pl_module
        if self._collector is None or not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / "categories.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._report.to_csv(path, index=False)
        path = keep_benchmark_rows(self._report) or path
        keep_benchmark_rows(self._collector.images(), "images")
        others = {name: float(value) for name, value in trainer.callback_metrics.items() if name[:5] != "mean_"}
        Console().print(report_table(self._report, others))
        logger.info("The results of each category are in %s", path)
