"""What a training batch holds, checked against counting by hand."""

import random
from collections import Counter

import numpy as np
import pytest

from anomalib_ccl.data import CategorySampler


def batches_of(categories, batch_size, num_replicas=1, rank=0, seed=0, epoch=0):
    """The batches that a data loader makes of the sampler's order."""
    sampler = CategorySampler(categories, batch_size, num_replicas, rank, seed)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert len(order) == len(sampler)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def skewed_categories(generator):
    """Up to 60 images of up to 12 classes, some of them rare."""
    count = generator.randint(1, 60)
    weights = [generator.random() ** 4 for _ in range(generator.randint(1, 12))]
    return [f"class {generator.choices(range(len(weights)), weights)[0]}" for _ in range(count)]


@pytest.mark.parametrize("trial", range(100))
def test_batches_are_full_and_of_one_class_only_where_no_other_can_spare_an_image(trial):
    generator = random.Random(trial)
    categories = skewed_categories(generator)
    batch_size, processes = generator.randint(1, 17), generator.randint(1, 4)
    per_process = [batches_of(categories, batch_size, processes, rank, seed=trial) for rank in range(processes)]
    assert len({len(batches) for batches in per_process}) == 1
    batches = [batch for batches in per_process for batch in batches]
    times = Counter(image for batch in batches for image in batch)
    assert set(times) == set(range(len(categories)))
    assert max(times.values()) - min(times.values()) <= 1
    classes = [Counter(categories[image] for image in batch) for batch in batches]
    for batch, of_batch in zip(batches, classes, strict=True):
        assert len(set(batch)) == len(batch) == min(batch_size, len(categories))
        if len(of_batch) == 1 < len(batch) and max(times.values()) == 1:
            (own,) = of_batch
            assert all(other.total() - other[own] < 2 for other in classes)


@pytest.mark.parametrize(
    ("categories", "batch_size"),
    [(["a", "b"] * 40, 20), ([str(image % 500) for image in range(8000)], 16), (["a"] * 12, 4)],
)
def test_batches_of_several_classes_are_a_plain_permutation(categories, batch_size):
    order = [image for batch in batches_of(categories, batch_size, seed=3, epoch=5) for image in batch]
    assert order == np.random.default_rng([3, 5]).permutation(len(categories)).tolist()


def test_a_rare_class_is_spread_over_as_many_batches_as_it_has_images():
    for epoch in range(20):
        batches = batches_of(["a"] * 36 + ["b"] * 4, 4, epoch=epoch)
        assert sum(any(image >= 36 for image in batch) for batch in batches) == 4


def test_order_depends_on_seed_and_epoch_alone():
    categories = ["a", "b"] * 30
    first = batches_of(categories, 8, seed=1, epoch=1)
    assert first == batches_of(categories, 8, seed=1, epoch=1)
    assert first != batches_of(categories, 8, seed=1, epoch=2)
    # Seed and epoch must not add up: runs with neighbouring seeds would share their epochs.
    assert first != batches_of(categories, 8, seed=2, epoch=0)
