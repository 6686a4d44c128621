"""What a training batch holds, checked against counting by hand."""

from __future__ import annotations

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


@pytest.mark.parametrize("trial", range(200))
def test_every_batch_has_two_classes_and_a_pair_where_the_data_allow(trial):
    generator = random.Random(trial)
    categories = skewed_categories(generator)
    batch_size, processes = generator.randint(1, 17), generator.randint(1, 4)
    counts = Counter(categories)
    full = min(batch_size, len(categories))
    per_process = []
    for rank in range(processes):
        batches = batches_of(categories, batch_size, processes, rank, seed=trial)
        per_process.append(len(batches))
        for batch in batches:
            classes = Counter(categories[image] for image in batch)
            assert len(set(batch)) == len(batch) == full
            if full >= 2 and len(counts) >= 2:
                assert len(classes) >= 2
            if full >= 3 and max(counts.values()) >= 2:
                assert max(classes.values()) >= 2
    assert len(set(per_process)) == 1


def test_each_image_comes_once_in_an_epoch_of_many_small_classes():
    # A random batch of 16 out of 500 classes has no pair more often than not: nearly all batches need repair.
    categories = [str(image % 500) for image in range(8000)]
    images = [image for batch in batches_of(categories, 16) for image in batch]
    assert len(images) == 8000
    assert len(set(images)) == 8000


def test_batches_that_need_no_repair_are_a_plain_permutation():
    categories = ["a", "b"] * 40
    order = [image for batch in batches_of(categories, 20, seed=3, epoch=5) for image in batch]
    assert order == np.random.default_rng([3, 5]).permutation(80).tolist()


def test_one_class_gives_a_plain_permutation():
    batches = batches_of(["a"] * 12, 4)
    assert sorted(image for batch in batches for image in batch) == list(range(12))


def test_processes_see_different_images_and_together_all_of_them():
    categories = ["a", "b", "c"] * 16
    ranks = [{image for batch in batches_of(categories, 6, 2, rank) for image in batch} for rank in range(2)]
    assert ranks[0] | ranks[1] == set(range(48))
    assert ranks[0] & ranks[1] == set()


def test_order_depends_on_seed_and_epoch_alone():
    categories = ["a", "b"] * 30
    first = batches_of(categories, 8, seed=1, epoch=1)
    assert first == batches_of(categories, 8, seed=1, epoch=1)
    assert first != batches_of(categories, 8, seed=1, epoch=2)
    # Seed and epoch must not add up: runs with neighbouring seeds would share their epochs.
    assert first != batches_of(categories, 8, seed=2, epoch=0)


def test_a_single_image_of_a_class_serves_all_batches():
    categories = ["a"] * 40 + ["b"]
    assert all(40 in batch for batch in batches_of(categories, 8))


def test_a_single_pair_serves_all_batches():
    categories = [f"only {image}" for image in range(40)] + ["pair", "pair"]
    assert all({40, 41} <= set(batch) for batch in batches_of(categories, 8))
