"""One pass over a Trainer's training images, as the model sees them, outside of its own loops."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from anomalib.data import ImageBatch
from anomalib.data.transforms.utils import extract_transforms_by_type
from anomalib.models.components import AnomalibModule
from anomalib.pre_processing import PreProcessor
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Resize
from tqdm.auto import tqdm

from anomalib_ccl.data.samples import collate_of, with_augmentations

T = TypeVar("T")


def training_images(model: AnomalibModule, description: str) -> Iterator[ImageBatch]:
    """Give the pre-processed training images in the order of the data set, without random augmentations.

    Args:
        model: Model whose Trainer has its training data.
        description: What the progress bar says, if the Trainer shows one.

    Yields:
        Batches on the model's device. The random numbers that are drawn meanwhile leave no trace.
    """
    batches = plain_loader(model.trainer.train_dataloader, model.pre_processor)  # type: ignore[arg-type]
    with isolate_rng():  # a resumed training, which skips a pass, draws the same numbers
        for batch in with_progress(batches, len(batches), model.trainer.progress_bar_callback, description):
            yield _pre_processed(batch, model)


def first_training_image(model: AnomalibModule) -> Tensor:
    """Give one training image as the model sees it in training.

    Args:
        model: Model whose Trainer has its training data.

    Returns:
        The pre-processed image, of shape ``(1, 3, H, W)``, on the model's device.
    """
    loader: Any = model.trainer.train_dataloader
    batch = _pre_processed(loader.collate_fn([loader.dataset[0]]), model)
    return batch.image  # type: ignore[return-value]


def plain_loader(loader: DataLoader, pre_processor: nn.Module | None) -> DataLoader:
    """Load the images of a loader in the order of the data set, without random augmentations.

    Args:
        loader: Loader of one of a datamodule's subsets, in whatever order.
        pre_processor: The model's pre-processor, if it has one.

    Returns:
        A loader of batches of the same size; their images are resized as the pre-processor does, so that those of
        several sizes fit into a batch.
    """
    dataset = loader.dataset
    transform: Any = getattr(pre_processor, "transform", None)
    # Where the pre-processor does not resize, the augmentations may have to.
    if resizes := extract_transforms_by_type(transform, Resize):
        dataset = with_augmentations(dataset, resizes[0])
    batch_size = getattr(loader.batch_sampler, "batch_size", 1)  # the loader has none if it was given a sampler of them
    return DataLoader(dataset, batch_size, num_workers=loader.num_workers, collate_fn=collate_of(dataset))


def _pre_processed(batch: ImageBatch, model: AnomalibModule) -> ImageBatch:
    batch.image = batch.image.to(model.device)  # type: ignore[union-attr]
    if isinstance(model.pre_processor, PreProcessor):
        model.pre_processor.on_train_batch_start(model.trainer, model, batch, 0)
    return batch


def with_progress(batches: Iterable[T], total: float, bar: ProgressBar | None, description: str) -> Iterator[T]:
    """Show the progress of a pass as the Trainer shows its own, if it does.

    Args:
        batches: The batches of the pass.
        total: Their number.
        bar: The Trainer's progress bar, if it has one.
        description: What the progress bar says.

    Yields:
        The batches.
    """
    # At the end of a training, it has been stopped.
    if isinstance(bar, RichProgressBar) and bar.progress is not None and bar.progress.live.is_started:
        task = bar.progress.add_task(description, total=total)
        for batch in batches:
            yield batch
            bar.progress.advance(task)
            bar.refresh()
        # Not removed: Lightning finds its own tasks by their position.
        bar.progress.update(task, visible=False)
    else:
        hidden = not isinstance(bar, RichProgressBar | TQDMProgressBar) or bar.is_disabled
        yield from tqdm(batches, description, total, leave=False, disable=hidden)
