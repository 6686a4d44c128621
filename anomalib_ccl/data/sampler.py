"""Training batches of more than one class, and test batches that lose no mask."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from anomalib_ccl.data.dataset import MultiCategoryDataset


class CategorySampler(DistributedSampler[int]):
    """A random order of the images whose consecutive batches hold at least two classes, where the data allow.

    It is a random permutation in which a batch of one class exchanges one image with another batch that can spare it.
    Each image comes once in an epoch, none twice in a batch; the last batches are filled up with images drawn again, so
    that every batch is full and every process gets equally many. Lightning leaves a ``DistributedSampler`` alone and
    calls its :meth:`set_epoch`, without which every epoch has the same order.

    Args:
        categories: The class of each image, in the order of the data set.
        batch_size: Images in a batch on one process; the batch size of the data loader.
        num_replicas: Number of processes. ``None`` asks ``torch.distributed`` and is 1 without it.
        rank: Number of this process. ``None`` asks ``torch.distributed`` and is 0 without it.
        seed: Seed of the order, together with the epoch; 0 or larger and the same on all processes.

    Example:
        >>> sampler = CategorySampler(["cable"] * 6 + ["bottle"] * 2, batch_size=4)
        >>> order = list(sampler)
        >>> sorted(order)
        [0, 1, 2, 3, 4, 5, 6, 7]
        >>> [len({"cable" if i < 6 else "bottle" for i in batch}) for batch in (order[:4], order[4:])]
        [2, 2]
    """

    def __init__(
        self,
        categories: Sequence[str],
        batch_size: int,
        num_replicas: int | None = None,
        rank: int | None = None,
        seed: int = 0,
    ) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        if num_replicas is None:
            num_replicas = dist.get_world_size() if distributed else 1
        if rank is None:
            rank = dist.get_rank() if distributed else 0
        super().__init__(categories, num_replicas=num_replicas, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.labels = np.unique(np.asarray(categories, dtype=str), return_inverse=True)[1]
        self.batch_size = min(batch_size, len(self.labels))
        self.num_samples = math.ceil(len(self.labels) / (self.batch_size * num_replicas)) * self.batch_size
        self.total_size = self.num_samples * num_replicas

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order: list[int] = []
        while len(order) < self.total_size:
            open_batch = set(order[len(order) - len(order) % self.batch_size :])
            permutation = generator.permutation(len(self.labels)).tolist()
            order += sorted(permutation, key=open_batch.__contains__)  # those that are in the batch already last
        batches = np.array(order[: self.total_size]).reshape(-1, self.batch_size)
        for batch in batches:
            if self.batch_size > 1 and self.labels.any() and (self.labels[batch] == self.labels[batch[0]]).all():
                self._exchange(batch, batches, generator)
        return iter(batches[self.rank :: self.num_replicas].ravel().tolist())

    def _exchange(self, batch: NDArray, batches: NDArray, generator: np.random.Generator) -> None:
        """Exchange the first image of a batch of one class with a batch that keeps two classes."""
        foreign = self.labels[batches] != self.labels[batch[0]]
        for other in generator.permutation(np.flatnonzero(foreign.sum(axis=1) > 1)):
            place = generator.choice(np.flatnonzero(foreign[other]))
            if batch[0] not in batches[other] and batches[other, place] not in batch:
                batch[0], batches[other, place] = batches[other, place], batch[0]
                return


class MaskBatchSampler(BatchSampler):
    """Batches of images that all come with a mask, or all without; a mixed batch would have no masks."""

    def __init__(
        self, sampler: Iterable[int], batch_size: int, drop_last: bool = False, masked: Sequence[bool] = ()
    ) -> None:
        super().__init__(sampler, batch_size, drop_last)
        self.masked = masked

    def __iter__(self) -> Iterator[list[int]]:
        for _, group in groupby(self.sampler, key=lambda index: bool(self.masked) and self.masked[index]):
            while batch := list(islice(group, self.batch_size)):
                yield batch

    def __len__(self) -> int:
        return sum(1 for _ in self)


def one_kind_a_batch(loader: DataLoader, dataset: MultiCategoryDataset) -> DataLoader:
    """Give the images of a loader of a data set in batches that all come with a mask, or all without."""
    masked = dataset.samples["masked"].tolist()
    batches = MaskBatchSampler(loader.sampler, loader.batch_size or 1, masked=masked)
    return DataLoader(dataset, batch_sampler=batches, num_workers=loader.num_workers, collate_fn=loader.collate_fn)
