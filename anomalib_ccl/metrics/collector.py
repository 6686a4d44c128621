"""Collects what a model predicts in one pass over a subset of :class:`~anomalib_ccl.data.MultiCategory`."""

from typing import Any

import pandas as pd
import torch
from anomalib.data import ImageBatch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from anomalib_ccl.data.dataset import MultiCategoryDataset
from anomalib_ccl.data.multi_category import MultiCategory
from anomalib_ccl.metrics.category import CategoryMetrics, with_mean
from anomalib_ccl.metrics.embedding import EmbeddingVMeasure
from anomalib_ccl.model.calibration import ClassCalibration


class Collector:
    """The metrics of one pass over a test or validation set, on each of several processes.

    Args:
        data: The images of the pass.
        model: The model that predicts.
    """

    def __init__(self, data: MultiCategoryDataset, model: LightningModule) -> None:
        samples: Any = data.samples
        self._metrics = CategoryMetrics(samples["category"], samples["label_index"])
        self._v_measure = EmbeddingVMeasure(samples["category"])
        self._index = {path: index for index, path in enumerate(samples["image_path"])}
        self._embedding: Tensor | None = None
        # A batch has no field for the embedding. It passes through the calibration, whether that is on or off.
        calibrations = [module for module in model.modules() if isinstance(module, ClassCalibration)]
        self._hooks = [module.register_forward_pre_hook(self._keep) for module in calibrations]

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        del module
        self._embedding = inputs[0]

    def add(self, trainer: Trainer, batch: ImageBatch) -> None:
        """Add the predictions of a batch.

        Args:
            trainer: The trainer that makes the pass.
            batch: Images with their paths, predictions and masks.
        """
        index = torch.tensor([self._index[path] for path in batch.image_path or ()])
        # Lightning gives image i to process i % world_size and fills up the last batches with repeated ones.
        own = index % trainer.world_size == trainer.global_rank
        predictions: Any = (batch.pred_score, batch.anomaly_map, batch.gt_mask)
        score, anomaly_map, mask = (None if x is None else x[own] for x in predictions)
        told = batch.explanation
        classes = None if told is None else [name for name, mine in zip(told, own, strict=True) if mine]
        self._metrics.update(index[own], score, anomaly_map, mask, classes)
        if self._embedding is not None:
            self._v_measure.update(index[own], self._embedding[own])

    def compute(self, trainer: Trainer) -> pd.DataFrame:
        """End the pass.

        Args:
            trainer: The trainer that made the pass.

        Returns:
            The figures of each category and their means, as
            :func:`~anomalib_ccl.metrics.category.with_mean` returns them.
        """
        for hook in self._hooks:
            hook.remove()
        if trainer.world_size > 1:
            for metric in (self._metrics, self._v_measure):
                metric.to(trainer.strategy.root_device)  # where processes can exchange tensors
        return with_mean(self._metrics.compute())

    def images(self) -> pd.DataFrame:
        """Give the scores of the images that this process has seen; see :meth:`CategoryMetrics.images`."""
        return self._metrics.images()

    def v_measure(self) -> float:
        """Cluster the embeddings of a pass that has ended.

        Returns:
            Their V-measure, in [0, 1]; NaN if the model has no embedding.
        """
        return self._v_measure.compute()


def images_of(trainer: Trainer, loader: Any, subset: str) -> MultiCategoryDataset | None:  # noqa: ANN401
    """Find the images that a trainer is about to pass over, if they are those of a MultiCategory.

    Args:
        trainer: The trainer.
        loader: Its data loader.
        subset: ``"val_data"`` or ``"test_data"``.

    Returns:
        The images, or None if it is other data.
    """
    datamodule = getattr(trainer, "datamodule", None)
    dataset = getattr(loader, "dataset", None)
    # A Trainer keeps the datamodule of an earlier call when it is later given dataloaders.
    if isinstance(datamodule, MultiCategory) and dataset is not None and dataset is getattr(datamodule, subset, None):
        return dataset
    return None
