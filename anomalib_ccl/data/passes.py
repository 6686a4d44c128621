"""Passes over the images of a data loader, as a model sees them, outside of Lightning's own loops."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from anomalib.data.transforms.utils import extract_transforms_by_type
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Resize
from tqdm.auto import tqdm

from anomalib_ccl.data.samples import collate_of, with_augmentations

T = TypeVar("T")


class Seen(NamedTuple):
    """Pre-processed images (B, 3, H, W) with their paths and their numbers (B,) in the data set."""

    images: Tensor
    paths: Sequence[str]
    numbers: Tensor


class Labelled(NamedTuple):
    """Normal images (B, 3, H, W) for a calibration: classes (B,), numbers (B,) in the data set, and paths."""

    images: Tensor
    labels: Tensor
    numbers: Tensor
    paths: Sequence[str]


@dataclass
class Passes:
    """Passes over the images of a loader, in the order of its data set and without random augmentations.

    On several processes, each sees its own share of the images. Random numbers that are drawn meanwhile leave no trace.
    """

    loader: DataLoader
    pre_processor: nn.Module | None
    device: torch.device
    bar: ProgressBar | None = None  # the Trainer's; without one, tqdm shows the progress
    rank: int = 0
    processes: int = 1
    shows_progress: bool = True

    @classmethod
    def of_training(cls, model: LightningModule, pre_processor: nn.Module | None) -> "Passes":
        """Make passes over the training images of a model's Trainer."""
        trainer = model.trainer
        loader = trainer.train_dataloader
        bar = trainer.progress_bar_callback
        rank, processes = trainer.global_rank, trainer.world_size
        return cls(loader, pre_processor, model.device, bar, rank, processes, bar is not None)  # type: ignore[arg-type]

    def __call__(self, description: str) -> Iterator[Seen]:
        """Make a pass."""
        transform = getattr(self.pre_processor, "transform", None)
        dataset = self.loader.dataset
        # Where the pre-processor does not resize, the augmentations may have to.
        if resizes := extract_transforms_by_type(transform, Resize):
            dataset = with_augmentations(dataset, resizes[0])
        # The loader has no batch size if it was given a sampler of batches.
        size = getattr(self.loader.batch_sampler, "batch_size", 1)
        own = range(self.rank, len(dataset), self.processes)  # type: ignore[arg-type]
        workers = self.loader.num_workers
        loader = DataLoader(dataset, size, sampler=own, num_workers=workers, collate_fn=collate_of(dataset))
        with isolate_rng():  # a resumed training, which skips a pass, draws the same numbers
            for place, batch in enumerate(self._with_progress(loader, len(loader), description)):
                images = batch.image.to(self.device)
                numbers = torch.tensor(own[place * size :][: len(images)])
                yield Seen(images if transform is None else transform(images), batch.image_path, numbers)

    def labelled(self, labels: Callable[[Sequence[str]], Tensor]) -> Callable[[str], Iterator[Labelled]]:
        """Make passes over images with their classes."""

        def make(description: str) -> Iterator[Labelled]:
            for seen in self(description):
                numbers = seen.numbers.to(self.device)
                yield Labelled(seen.images, labels(seen.paths).to(self.device), numbers, seen.paths)

        return make

    def _with_progress(self, batches: Iterable[T], total: int, description: str) -> Iterable[T]:
        """Show the progress of a pass as the Trainer shows its own, if it does."""
        bar = self.bar
        # At the end of a training, it has been stopped.
        if isinstance(bar, RichProgressBar) and bar.progress is not None and bar.progress.live.is_started:
            return bar.progress.track(batches, total, description=description)
        hidden = not self.shows_progress or (isinstance(bar, RichProgressBar | TQDMProgressBar) and bar.is_disabled)
        return tqdm(batches, description, total, leave=False, disable=hidden)
