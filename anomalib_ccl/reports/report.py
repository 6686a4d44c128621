"""The callback that reports a test or a prediction: a table, ``categories.csv``, ``predictions.csv``, a page."""

from pathlib import Path
from typing import NamedTuple

import torch
from anomalib.data import ImageBatch
from anomalib.models import AnomalibModule
from anomalib.visualization import ImageVisualizer
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from torch import Tensor

from anomalib_ccl.data.multi_category import MultiCategory
from anomalib_ccl.metrics.category import FIGURES, CategoryMetrics, with_mean
from anomalib_ccl.reports.heatmaps import CCLVisualizer
from anomalib_ccl.reports.mistakes import Mistakes
from anomalib_ccl.reports.page import write_page
from anomalib_ccl.reports.predictions import KnownImages, PredictionsFile, RecognisesProducts, loaded, predictions
from anomalib_ccl.reports.table import remarks, report_table
from anomalib_ccl.training.post_processor import LimitPostProcessor


class _Raw(NamedTuple):
    """A batch that its post-processor is about to change, and its scores before that."""

    batch: ImageBatch
    score: Tensor | None
    anomaly_map: Tensor | None


class Report(Callback):
    """Reports what is predicted, for every model of anomalib on :class:`~anomalib_ccl.data.MultiCategory`.

    After a test it prints the figures of each category, writes them to ``categories.csv`` in the Trainer's
    ``default_root_dir``, and logs the mean over the categories of each of
    :data:`~anomalib_ccl.metrics.category.FIGURES` as ``mean_image_AUROC``, … ``mean_class_accuracy``. The keys are the
    same for every model and data set; a value is NaN if there is no such figure, as without masks. ``report.html`` in
    the same folder shows the figures, the scores and the worst mistakes.

    In a test and in a prediction, ``predictions.csv`` in the same folder gets a row for each image
    (:class:`~anomalib_ccl.reports.predictions.Prediction`): those of a batch before the next one begins, or as soon as
    the run breaks off. Several processes write to one file and report what one would. At the end the first process
    prints where the results are.

    Rankings are those of the scores that the model gives, before its post-processor cuts them off at 0 and 1; verdicts
    are the post-processor's. Therefore this callback must come before the post-processor, as callbacks of the entry
    point do: it takes the scores when a batch ends, and the verdicts when the next one begins.

    Args:
        always: Whether predictions on any other data are reported too, for a model that recognises products. Without
            it, nothing is done and touched where the images are not those of a MultiCategory.

    Example:
        >>> from anomalib.engine import Engine
        >>> engine = Engine(callbacks=[Report()])  # needless where the plug-in is installed
    """

    def __init__(self, always: bool = False) -> None:
        self.always = always
        self._file: PredictionsFile | None = None  # while a run is reported
        self._metrics: CategoryMetrics | None = None
        self._raw: _Raw | None = None
        self._page: Path | None = None  # to be named at the end

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out whether to report, and agree on the folder, in which the first process begins the file."""
        self._file, self._raw, self._metrics, self._page = None, None, None, None
        loaders = trainer.test_dataloaders if trainer.testing else trainer.predict_dataloaders
        data = _multi_category(trainer, loaders)
        # A Trainer keeps the callbacks of a model that it is later given another in the place of.
        own = self.always and isinstance(pl_module, RecognisesProducts)
        if not (own or (isinstance(pl_module, AnomalibModule) and data is not None)):
            return
        if trainer.testing and data is not None:
            samples = data.test_data.samples
            self._metrics = CategoryMetrics(samples["category"].tolist(), samples["label_index"].tolist())
            self._mistakes = Mistakes()
        self._images = KnownImages(loaded(loaders))
        self._folder = Path(trainer.default_root_dir)
        if trainer.is_global_zero:
            self._folder.mkdir(parents=True, exist_ok=True)
            PredictionsFile(self._folder / "predictions.csv", begin=True).close()
        self._folder = trainer.strategy.broadcast(self._folder)
        self._file = PredictionsFile(self._folder / "predictions.csv")

    on_predict_start = on_test_start

    def _keep(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: ImageBatch,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the scores of a batch as the model gave them."""
        del trainer, pl_module, batch, batch_idx, dataloader_idx
        if self._file is not None:
            self._raw = _Raw(outputs, outputs.pred_score, outputs.anomaly_map)

    on_test_batch_end = on_predict_batch_end = _keep  # type: ignore[assignment]

    def _finish(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        """Report the batch that was kept, which the post-processor has changed by now."""
        del args
        if self._file is None or self._raw is None:
            return
        (batch, score, anomaly_map), self._raw = self._raw, None
        indices = [self._images.of(path).number for path in batch.image_path or ()] or [None] * len(batch)
        # Lightning gives image i to process i % world_size and fills up the last batches of a test with repeated ones.
        own = [index is None or index % trainer.world_size == trainer.global_rank for index in indices]
        every = enumerate(predictions(pl_module, batch, self._images))
        rows = [(number, row) for (number, row), mine in zip(every, own, strict=True) if mine]
        self._file.add(row for _, row in rows)
        if self._metrics is not None:
            self._mistakes.add(rows, batch, score, getattr(pl_module, "pre_processor", None))
            chosen = torch.tensor(own)
            named = batch.explanation if isinstance(pl_module, RecognisesProducts) else None
            tensors = (score, anomaly_map, batch.gt_mask, batch.pred_label)
            score, anomaly_map, mask, verdict = (None if x is None else x[chosen] for x in tensors)
            classes = None if named is None else [name for name, mine in zip(named, own, strict=True) if mine]
            self._metrics.update(torch.tensor(indices)[chosen], score, anomaly_map, mask, verdict, classes)

    on_test_batch_start = on_predict_batch_start = on_predict_epoch_end = _finish  # type: ignore[assignment]

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the figures and log their means."""
        self._finish(trainer, pl_module)
        if self._metrics is None:
            return
        if trainer.world_size > 1:
            self._metrics.to(trainer.strategy.root_device)  # where processes can exchange tensors
        self._report = with_mean(self._metrics.compute())
        means = self._report.iloc[-1]
        pl_module.log_dict({f"mean_{name}": means[name] for name in FIGURES}, sync_dist=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table, write the page, and say where the results are."""
        tested, self._metrics = self._metrics is not None, None
        lines = remarks(self._report, _rate(pl_module)) if tested else []
        if tested and trainer.is_global_zero:
            self._report.to_csv(self._folder / "categories.csv", index=False)
            Console().print(report_table(self._report))
            print(*lines, f"Categories: {self._folder / 'categories.csv'}", sep="\n")
        self.on_predict_end(trainer, pl_module)
        if not tested:
            return
        worst = self._mistakes.worst()
        if trainer.is_global_zero:
            heatmaps = next(iter(self._pictures(trainer, CCLVisualizer)), None)
            name = type(pl_module).__name__
            self._page = write_page(self._folder, name, self._report, lines, worst, self._images, heatmaps)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the results are."""
        del pl_module
        if self._file is None:
            return
        trainer.strategy.barrier()  # until all processes have written theirs
        self._close()
        if trainer.is_global_zero:
            print(f"Predictions: {self._folder / 'predictions.csv'}")
            for folder in self._pictures(trainer, ImageVisualizer):
                print(f"Heatmaps: {folder}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say where the page is, after all that Lightning prints."""
        del trainer, pl_module, stage
        if self._page is not None:
            print(f"Report: {self._page}")
        self._page = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the rows of the last batch."""
        del exception
        self._metrics = None
        self._finish(trainer, pl_module)
        self._close()

    def _pictures(self, trainer: Trainer, kind: type[ImageVisualizer]) -> dict[Path, None]:
        """The folders that visualizers of a kind draw in."""
        visualizers = [x for x in trainer.callbacks if isinstance(x, kind)]  # type: ignore[attr-defined]
        return dict.fromkeys(Path(x.output_dir or self._folder / "images") for x in visualizers)

    def _close(self) -> None:
        """End the report of a run."""
        if self._file is not None:
            self._file.close()
        self._file, self._raw = None, None


def _rate(model: LightningModule) -> float | None:
    """The share of false alarms that a model was asked for, if its threshold is the limit for it."""
    if isinstance(model, RecognisesProducts) and isinstance(model.post_processor, LimitPostProcessor):
        return model.model.calibration.false_alarm_rate
    return None


def _multi_category(trainer: Trainer, loaders: object) -> MultiCategory | None:
    """The datamodule whose images a trainer is about to pass over, if it is a MultiCategory."""
    datamodule = getattr(trainer, "datamodule", None)
    # A Trainer keeps the datamodule of an earlier call when it is later given dataloaders.
    if isinstance(datamodule, MultiCategory) and loaded(loaders) == [getattr(datamodule, "test_data", None)]:
        return datamodule
    return None
