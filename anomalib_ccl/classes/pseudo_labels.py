"""The pseudo-classes of a Trainer's training images."""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from anomalib.models.components import AnomalibModule
from sklearn.metrics import v_measure_score
from torch import Tensor

from anomalib_ccl.classes.clustering import ClassCount, check_class_count, pooled, pseudo_classes
from anomalib_ccl.data.samples import samples_of
from anomalib_ccl.training.training_pass import training_images

logger = logging.getLogger(__name__)


def find_pseudo_labels(
    model: AnomalibModule, features: Callable[[Tensor], list[Tensor]], k: ClassCount, known: dict[str, str]
) -> dict[str, str]:
    """Cluster the training images, in one pass over them, on the first process for all.

    Args:
        model: Model whose Trainer has its training data.
        features: Gives the features of pre-processed images of shape ``(B, 3, H, W)``, one map for each scale.
        k: Number of classes, or ``"auto"``; see :func:`~anomalib_ccl.classes.clustering.pseudo_classes`.
        known: The classes of an earlier run, taken over where they cover all training images.

    Returns:
        The class name of each image, by its path; the same on all processes.

    Raises:
        ValueError: If k is more than the number of training images, or the processes have different images.
    """
    loader: Any = model.trainer.train_dataloader
    samples = samples_of(loader.dataset)
    paths = samples["image_path"].astype(str)
    # On all processes, so that none waits for one that failed.
    check_class_count(k, len(paths))
    names = known
    if model.trainer.is_global_zero and not known.keys() >= set(paths):
        labels, silhouette = pseudo_classes(_pooled_features(model, features).numpy(), k)
        width = len(str(labels.max()))
        names = {path: f"pseudo_{label:0{width}}" for path, label in zip(paths, labels, strict=True)}
        sizes = sorted(Counter(names.values()).items())
        logger.info(
            "Pseudo-classes found: %d, for %d training images, with silhouette %.2f (%s)",
            len(sizes),
            len(paths),
            silhouette,
            ", ".join(f"{name} {size}" for name, size in sizes),
        )
        if k != "auto" and len(sizes) < k:
            logger.warning("Only %d of %d pseudo-classes found: all other training images are copies.", len(sizes), k)
        if "category" in samples:
            logger.info("V-measure of the pseudo-classes: %.3f", v_measure_score(samples["category"], labels))
    names = model.trainer.strategy.broadcast(names)
    if not names.keys() >= set(paths):
        msg = "the training images differ between processes; give the datamodule a seed, so that it splits them alike"
        raise ValueError(msg)
    return names


@torch.no_grad()
def _pooled_features(model: AnomalibModule, features: Callable[[Tensor], list[Tensor]]) -> Tensor:
    """Pool the features of the training images, in the order of the data set."""
    images = (batch.image for batch in training_images(model, "Features for pseudo-classes"))
    return torch.cat([pooled(features(x.to(model.dtype))).cpu() for x in images])  # type: ignore[union-attr]
