"""The samples behind what users wrap around data sets."""

import pytest
import torch
from layouts import joined
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset, random_split
from torchvision.transforms.v2 import Resize

from anomalib_ccl.data.samples import collate_of, datasets_of, samples_of, with_augmentations
from anomalib_ccl.errors import InputError


def test_samples_are_in_the_order_of_the_items(two_categories):
    train = joined("MVTecAD", two_categories).train_data
    wrapped = ConcatDataset(
        [Subset(train, [5, 1]), Subset(Subset(train, [7, 0, 3]), [2, 1]), random_split(train, [3, 5])[0]]
    )
    paths = samples_of(wrapped)["image_path"].tolist()
    assert paths == [wrapped[index].image_path for index in range(len(wrapped))]
    assert samples_of(train) is train.samples
    assert all(dataset is train for dataset in datasets_of(wrapped))
    batch = next(iter(DataLoader(wrapped, batch_size=4, collate_fn=collate_of(wrapped))))
    assert batch.image_path == paths[:4]


def test_other_data_sets_are_refused_by_name():
    with pytest.raises(InputError, match="images of a TensorDataset have no table of samples; train on"):
        samples_of(Subset(TensorDataset(torch.zeros(3)), [0]))


def test_augmentations_are_those_of_a_copy(two_categories):
    train = joined("MVTecAD", two_categories).train_data
    wrapped = ConcatDataset([Subset(train, [0]), train])
    small = with_augmentations(wrapped, Resize((8, 8)))
    assert [small[index].image.shape[-1] for index in (0, 1)] == [8, 8]
    assert [wrapped[index].image.shape[-1] for index in (0, 1)] == [32, 32]
