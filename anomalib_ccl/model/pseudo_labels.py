"""The pseudo-classes of a Trainer's training images."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from copy import copy
from typing import Any

import torch
from anomalib.data.transforms.utils import extract_transforms_by_type
from anomalib.models.components import AnomalibModule
from anomalib.pre_processing import PreProcessor
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from lightning.pytorch.utilities.seed import isolate_rng
from sklearn.metrics import v_measure_score
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Resize
from tqdm.auto import tqdm

from anomalib_ccl.pseudo_classes import ClassCount, check_class_count, pooled, pseudo_classes

logger = logging.getLogger(__name__)

_DESCRIPTION = "Features for pseudo-classes"


def find_pseudo_labels(
    model: AnomalibModule, encode: Callable[[Tensor], list[Tensor]], k: ClassCount, known: dict[str, str]
) -> dict[str, str]:
    """Cluster the training images, in one pass over them, on the first process for all.

    Args:
        model: Model whose Trainer has its training data.
        encode: Gives the features of pre-processed images of shape ``(B, 3, H, W)``, one map for each scale.
        k: Number of classes, or ``"auto"``; see :func:`~anomalib_ccl.pseudo_classes.pseudo_classes`.
        known: The classes of an earlier run, taken over where they cover all training images.

    Returns:
        The class name of each image, by its path; the same on all processes.

    Raises:
        ValueError: If k is more than the number of training images, or the processes have different images.
    """
    loader: Any = model.trainer.train_dataloader
    samples = loader.dataset.samples
    paths = samples["image_path"].astype(str)
    # On all processes, so that none waits for one that failed.
    check_class_count(k, len(paths))
    names = known
    if model.trainer.is_global_zero and not known.keys() >= set(paths):
        labels, silhouette = pseudo_classes(_features(model, encode, loader).numpy(), k)
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
def _features(model: AnomalibModule, encode: Callable[[Tensor], list[Tensor]], loader: DataLoader) -> Tensor:
    """Pool the features of the training images, in the order of the data set."""
    dataset: Any = copy(loader.dataset)
    # Random augmentations would blur the classes. Where the pre-processor does not resize, they may have to.
    if resizes := extract_transforms_by_type(model.pre_processor and model.pre_processor.transform, Resize):
        dataset.augmentations = resizes[0]
    batches = DataLoader(dataset, loader.batch_size, num_workers=loader.num_workers, collate_fn=dataset.collate_fn)
    features = []
    with isolate_rng():  # a resumed training, which skips this pass, draws the same numbers
        for batch in _with_progress(batches, model.trainer.progress_bar_callback):
            batch.image = batch.image.to(model.device)
            if isinstance(model.pre_processor, PreProcessor):
                model.pre_processor.on_train_batch_start(model.trainer, model, batch, 0)
            features.append(pooled(encode(batch.image.to(model.dtype))).cpu())
    return torch.cat(features)


def _with_progress(batches: DataLoader, bar: ProgressBar | None) -> Iterator[Any]:
    """Show the progress as the Trainer shows its own, if it does."""
    if isinstance(bar, RichProgressBar) and bar.progress is not None:
        task = bar.progress.add_task(_DESCRIPTION, total=len(batches))
        for batch in batches:
            yield batch
            bar.progress.advance(task)
            bar.refresh()
        # Not removed: Lightning finds its own tasks by their position.
        bar.progress.update(task, visible=False)
    else:
        hidden = not isinstance(bar, TQDMProgressBar) or bar.is_disabled
        yield from tqdm(batches, _DESCRIPTION, leave=False, disable=hidden)
