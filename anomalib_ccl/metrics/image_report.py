"""The report of each image after a test or a prediction: a row of a CSV file, and a heatmap."""

from collections import Counter
from pathlib import Path
from typing import Any

from anomalib.callbacks.timer import TimerCallback
from anomalib.data import AnomalibDataModule, ImageBatch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DistributedSampler

from anomalib_ccl.data.dataset import MultiCategoryDataset
from anomalib_ccl.data.samples import datasets_of
from anomalib_ccl.metrics.earlier import HEATMAPS, PREDICTIONS, set_aside
from anomalib_ccl.metrics.full_disk import writing_to
from anomalib_ccl.metrics.heatmaps import Heatmaps, own_visualizers
from anomalib_ccl.metrics.images import PassImages
from anomalib_ccl.metrics.observer import PredictionObserver
from anomalib_ccl.metrics.predictions import Prediction, PredictionsFile, predictions
from anomalib_ccl.model import CCL
from anomalib_ccl.training.callers import caller


class ImageReport(PredictionObserver):
    """Keeps what is predicted for each image.

    By :class:`~anomalib_ccl.CCL` on any data, and by any model on :class:`~anomalib_ccl.data.MultiCategory`. In a test
    or a prediction, ``predictions.csv`` in the Trainer's ``default_root_dir`` gets a row for each image
    (:class:`~anomalib_ccl.metrics.predictions.Prediction`) as soon as its batch is done, so that nothing is lost if the
    run ends early. The image visualizer, the model's own or one given to the Trainer, draws one heatmap an image, with
    product, score and verdict under it: in ``images`` beside that file or its own ``output_dir``, under the path that
    the image has in the folder predicted, or in its category behind the name of the category. At the end the first
    process prints where both are.

    What an earlier run has left in the folder is moved to ``earlier/1``, ``earlier/2``, … in it. Several processes
    write to one file, in the order in which they get done.

    anomalib's ``predict`` command throws away what the Trainer returns, which is every image and every map: there the
    Trainer is told to keep nothing. In Python, ``engine.predict(…, return_predictions=False)`` does the same.

    Example:
        >>> from anomalib.engine import Engine
        >>> engine = Engine(callbacks=[ImageReport()])  # needless where the plugin is installed
    """

    stages = frozenset({RunningStage.TESTING, RunningStage.PREDICTING})

    def __init__(self) -> None:
        self._file: PredictionsFile | None = None
        self._replaced: list[Callback] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Get ready for the images of a test."""
        self._start(trainer, pl_module, trainer.test_dataloaders, trainer.test_loop._data_source.instance)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Get ready for the images of a prediction."""
        self._start(trainer, pl_module, trainer.predict_dataloaders, trainer.predict_loop._data_source.instance)
        if self._file is not None and caller("AnomalibCLI", "_run_subcommand"):
            trainer.predict_loop.return_predictions = False

    def _start(self, trainer: Trainer, pl_module: LightningModule, loaders: Any, source: object) -> None:  # noqa: ANN401
        """Look up the images, make the file, and take the place of the visualizers."""
        self._loaders = CombinedLoader(loaders, "sequential").flattened
        datasets = [data for loader in self._loaders for data in datasets_of(getattr(loader, "dataset", None))]
        if not isinstance(pl_module, CCL) and not any(isinstance(x, MultiCategoryDataset) for x in datasets):
            return
        # Not the Trainer's datamodule, which stays that of an earlier call when dataloaders are given to a later one.
        category = source.category if isinstance(source, AnomalibDataModule) else ""
        path = (caller("Engine", "predict") or {}).get("data_path")
        predicted = str(Path(path).resolve()) if path is not None and Path(path).is_dir() else None
        folder, predicted = self._agree(trainer, predicted)
        self._images = PassImages(datasets, predicted, category or "")
        self._seen = Counter[int]()
        self._file = PredictionsFile(folder / PREDICTIONS)
        visualizers = own_visualizers(trainer.callbacks)  # type: ignore[attr-defined]
        self._heatmaps = Heatmaps(visualizers, folder / HEATMAPS)
        self._replaced = trainer.callbacks  # type: ignore[attr-defined]
        others = [x for x in self._replaced if x is not self and x not in visualizers]
        # Last, because the post-processor makes score, verdict and map what they are to be.
        trainer.callbacks = [*others, self]  # type: ignore[attr-defined]

    def _agree(self, trainer: Trainer, predicted: str | None) -> tuple[Path, str | None]:
        """Have the first process clear the folder of the run and begin the file, and the others wait for that."""
        folder = Path(trainer.default_root_dir)
        self._earlier: Path | None = None
        if trainer.is_global_zero:
            with writing_to(folder):
                folder.mkdir(parents=True, exist_ok=True)
                # Without anomalib's Engine, the folder is by default the current one: its images may be photographs.
                by_engine = any(isinstance(x, TimerCallback) for x in trainer.callbacks)  # type: ignore[attr-defined]
                self._earlier = set_aside(folder, PREDICTIONS, *([HEATMAPS] if by_engine else []))
            file = PredictionsFile(folder / PREDICTIONS)
            file.add([Prediction._fields])
            file.close()
        agreed, predicted = trainer.strategy.broadcast((str(folder), predicted))
        return Path(agreed), predicted

    def observe(self, trainer: Trainer, pl_module: LightningModule, batch: ImageBatch, dataloader_idx: int) -> None:
        """Write the rows of a batch, then draw its images."""
        del trainer
        if self._file is None:
            return
        first = self._seen[dataloader_idx]
        self._seen[dataloader_idx] += len(batch)
        numbers = [_number(self._loaders[dataloader_idx], n) for n in range(first, first + len(batch))]
        rows = list(predictions(pl_module, batch, self._images))
        self._file.add(row for row, number in zip(rows, numbers, strict=True) if number is not None)
        if not self._heatmaps:
            return
        ranges = getattr(pl_module, "pixel_ranges", None)
        for item, row, number in zip(batch, rows, numbers, strict=True):
            if number is not None:
                place = Path(f"{number:06}.png") if row.path is None else self._images.place(row.path)
                self._heatmaps.draw(item, place, row.caption(), ranges)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the results are, and give the visualizers their place back."""
        if self._file is not None:
            trainer.strategy.barrier()  # until all processes have written theirs
        self._stop(trainer)

    on_predict_end = on_test_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say where the results are that there are, and give the visualizers their place back."""
        self._stop(trainer, " so far")

    def _stop(self, trainer: Trainer, how_far: str = "") -> None:
        if self._file is None:
            return
        self._file.close()
        self._heatmaps.close()
        trainer.callbacks = self._replaced  # type: ignore[attr-defined]
        # The folder of a benchmark's job is deleted after it.
        if trainer.is_global_zero and caller("BenchmarkJob", "run") is None:
            print(f"Predictions{how_far}: {self._file.path}")
            for folder in dict.fromkeys(self._heatmaps.folders):
                print(f"Heatmaps{how_far}: {folder}")
            if self._earlier is not None:
                print(f"Results of an earlier run were moved to {self._earlier}")
        self._file = None


def _number(loader: Any, n: int) -> int | None:  # noqa: ANN401
    """Number an image among those of all processes; None if it only fills up the last batch of this one.

    Args:
        loader: The loader of this process.
        n: Number of the image among those of this process.

    Returns:
        Its number.
    """
    sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    if not isinstance(sampler, DistributedSampler):
        return n
    number = n * sampler.num_replicas + sampler.rank
    return number if number < len(sampler.dataset) else None  # type: ignore[arg-type]
