"""Shuffling that keeps more than one class in every training batch."""

from __future__ import annotations

import math
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.distributed as dist
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


class CategorySampler(DistributedSampler[int]):
    """A random order of the images whose batches suit contrastive losses.

    Cut into consecutive batches, the order gives each batch at least two classes and at least two images of
    one class. It is a plain random permutation in which only the batches that would miss
    this exchange one image with another batch, so that every image still comes once. Where no other batch can
    spare such an image, as when a class has fewer images than there are batches, one image of the batch makes
    room for another one, which then comes more than once in that epoch.

    The last batches are filled up with images drawn again, so that every batch is full and every process gets
    equally many. No image comes twice in a batch. With one class the order is a plain permutation; so it is
    with a batch size of 1, and a batch of 2 keeps two classes only.

    It is an index sampler and a :class:`~torch.utils.data.DistributedSampler`: Lightning then leaves it alone
    under distributed training and calls :meth:`set_epoch`. Without a call of :meth:`set_epoch`, every epoch
    has the same order.

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
        _, labels = np.unique(np.asarray(categories, dtype=str), return_inverse=True)
        self.labels: list[int] = labels.tolist()
        self.batch_size = min(batch_size, len(self.labels))
        self.num_samples = math.ceil(len(self.labels) / (self.batch_size * num_replicas)) * self.batch_size
        self.total_size = self.num_samples * num_replicas

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = _full_batches(len(self.labels), self.total_size, self.batch_size, generator)
        if self.batch_size > 1 and max(self.labels) > 0:
            _Repair(order, self.labels, self.batch_size, generator).run()
        for start in range(self.rank * self.batch_size, self.total_size, self.num_replicas * self.batch_size):
            yield from order[start : start + self.batch_size]


class MaskBatchSampler(BatchSampler):
    """Batches of images that all come with a mask, or all without.

    A batch has masks for all of its images or for none. It ends early where the next image is of the other kind.

    Args:
        sampler: Gives the images in their order.
        batch_size: Images in a batch.
        drop_last: Must be False; Lightning sets it.
        masked: Of each image of the data set whether it comes with a mask; all alike if it is empty.

    Example:
        >>> list(MaskBatchSampler(range(5), 2, masked=[True, True, True, False, False]))
        [[0, 1], [2], [3, 4]]
    """

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


def one_kind_a_batch(loader: Any) -> DataLoader:  # noqa: ANN401
    """Give the images of a loader in batches that all come with a mask, or all without.

    Args:
        loader: Loader of a :class:`~anomalib_ccl.data.MultiCategoryDataset`, in its order.

    Returns:
        A loader of the same images; the same loader if all are of one kind.
    """
    masked = loader.dataset.samples["masked"].tolist()
    if len(set(masked)) < 2:
        return loader
    batches = MaskBatchSampler(loader.sampler, loader.batch_size, masked=masked)
    return DataLoader(
        loader.dataset, batch_sampler=batches, num_workers=loader.num_workers, collate_fn=loader.collate_fn
    )


def _full_batches(images: int, total: int, batch_size: int, generator: np.random.Generator) -> list[int]:
    """Permutations of the images, one after the other, without a repeated image in a batch."""
    order: list[int] = []
    while len(order) < total:
        open_batch = set(order[len(order) - len(order) % batch_size :])
        permutation = generator.permutation(images).tolist()
        order += [image for image in permutation if image not in open_batch]
        order += [image for image in permutation if image in open_batch]
    return order[:total]


class _Repair:
    """Gives each batch of an order two classes and two images of one class, in linear time."""

    attempts = 8

    def __init__(self, order: list[int], labels: list[int], batch_size: int, generator: np.random.Generator) -> None:
        self.order, self.labels, self.size, self.generator = order, labels, batch_size, generator
        self.images: list[list[int]] = [[] for _ in range(max(labels) + 1)]
        for image, label in enumerate(labels):
            self.images[label].append(image)
        self.pairs = [label for label, images in enumerate(self.images) if len(images) > 1]
        self.place_of = {image: place for place, image in enumerate(order)}

    def run(self) -> None:
        for start in range(0, len(self.order), self.size):
            # Twice where neither an image of the batch nor the first one brought in has a partner there yet.
            while not self._good(start):
                self._mend(start)

    def _good(self, start: int) -> bool:
        classes = {self.labels[image] for image in self.order[start : start + self.size]}
        # A batch of two has no room for a pair, and without a pair in the data there is none to ask for.
        return len(classes) > 1 and (len(classes) < self.size or self.size == 2 or not self.pairs)

    def _mend(self, start: int) -> None:
        """Bring one image into a batch in exchange for one of its own."""
        for _ in range(self.attempts):
            place, image = self._remedy(start)
            if self._exchange(place, image):
                return
        # No other batch can spare such an image: it comes twice in this epoch.
        self.order[place] = image

    def _remedy(self, start: int) -> tuple[int, int]:
        """A place in the batch, and an image that mends the batch there."""
        places = (start + self.generator.permutation(self.size)).tolist()
        own = self.labels[self.order[places[0]]]
        if all(self.labels[self.order[place]] == own for place in places):
            other = self._random(len(self.images) - 1)
            return places[0], self._draw(other + (other >= own))
        for i, place in enumerate(places):
            image = self.order[place]
            if len(self.images[self.labels[image]]) > 1:
                return places[i - 1], self._draw(self.labels[image], but=image)
        return places[0], self._draw(self.pairs[self._random(len(self.pairs))])

    def _exchange(self, place: int, image: int) -> bool:
        """Exchange with the batch that has the image, unless that batch suffers from it."""
        removed, source = self.order[place], self.place_of[image]
        start = source - source % self.size
        # The image has lost its place in this epoch, or the other batch would get an image twice.
        if self.order[source] != image or removed in self.order[start : start + self.size]:
            return False
        self.order[place], self.order[source] = image, removed
        # Batches that are still to come are seen to later.
        if source < place and not self._good(start):
            self.order[place], self.order[source] = removed, image
            return False
        self.place_of[image], self.place_of[removed] = place, source
        return True

    def _draw(self, label: int, but: int = -1) -> int:
        """A random image of the class other than ``but``."""
        images = self.images[label]
        while True:
            image = images[self._random(len(images))]
            if image != but:
                return image

    def _random(self, stop: int) -> int:
        return int(self.generator.integers(stop))
