"""Heatmaps of several categories that do not overwrite each other."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anomalib.data import ImageBatch, ImageItem
from anomalib.visualization import ImageVisualizer
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage

from anomalib_ccl.data.multi_category import MultiCategory
from anomalib_ccl.metrics.observer import PredictionObserver


class CategoryVisualizer(PredictionObserver):
    """Has anomalib's image visualizer write to a folder for each category.

    Of a path, :class:`~anomalib.visualization.ImageVisualizer` keeps the file name and the folder before it,
    so that ``good/000.png`` of several categories overwrite each other. In a test or a prediction on
    :class:`~anomalib_ccl.data.MultiCategory`, this callback takes the place of the visualizer, the model's
    own or one given to the Trainer, and calls it for one category at a time, with ``<output_dir>/<category>``
    as its folder. ``output_dir`` is the visualizer's own, ``images`` in the Trainer's ``default_root_dir`` if
    it has none. Images that are not in the test set, as in a prediction on a folder, go to ``output_dir``.

    Example:
        >>> from anomalib.engine import Engine
        >>> engine = Engine(callbacks=[CategoryVisualizer()])  # needless where the plugin is installed
    """

    stages = frozenset({RunningStage.TESTING, RunningStage.PREDICTING})

    def __init__(self) -> None:
        self._replaced: list[Callback] | None = None
        self._visualizers: list[ImageVisualizer] = []
        self._category: dict[str, str] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the place of the visualizers."""
        del pl_module
        datamodule = getattr(trainer, "datamodule", None)
        if stage not in {"test", "predict"} or not isinstance(datamodule, MultiCategory):
            return
        samples = datamodule.test_data.samples
        self._category = dict(zip(samples["image_path"], samples["category"], strict=True))
        callbacks = self._replaced = trainer.callbacks  # type: ignore[attr-defined]
        self._visualizers = [x for x in callbacks if isinstance(x, ImageVisualizer)]
        others = [x for x in callbacks if x is not self and x not in self._visualizers]
        # Last, because a visualizer shows what the post-processor before it has made of the scores.
        trainer.callbacks = [*others, self]  # type: ignore[attr-defined]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the visualizers their place back."""
        del pl_module, stage
        self._step_back(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the visualizers their place back when a run is broken off."""
        del pl_module, exception
        self._step_back(trainer)

    def _step_back(self, trainer: Trainer) -> None:
        if self._replaced is not None:
            trainer.callbacks = self._replaced  # type: ignore[attr-defined]
        self._replaced, self._visualizers = None, []

    def observe(self, trainer: Trainer, pl_module: LightningModule, batch: ImageBatch, batch_idx: int) -> None:
        """Draw the images of a batch."""
        for visualizer, part in self._parts(trainer, batch):
            visualizer.on_test_batch_end(trainer, pl_module, part, part, batch_idx)  # type: ignore[arg-type]

    def _parts(self, trainer: Trainer, batch: ImageBatch) -> Iterator[tuple[ImageVisualizer, Any]]:
        """Split a batch by category, for each visualizer, whose folder is the category's meanwhile."""
        parts: dict[str, list[ImageItem]] = defaultdict(list)
        for item in batch:
            parts[self._category.get(str(item.image_path), "")].append(item)
        for visualizer in self._visualizers:
            own = visualizer.output_dir
            for category, items in parts.items():
                visualizer.output_dir = Path(own or Path(trainer.default_root_dir, "images")) / category
                yield visualizer, type(batch).collate(items)
            visualizer.output_dir = own
