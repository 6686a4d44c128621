"""Calibration of a network: levels, memory, and scores that an image has no part in."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from anomalib_ccl.data.passes import Labelled
from anomalib_ccl.errors import InputError
from anomalib_ccl.model.patches import PatchSample, patches_of
from anomalib_ccl.model.torch_model import RECONSTRUCTION_SHARE, CCLModel
from anomalib_ccl.training.calibrate import calibrate
from anomalib_ccl.training.views import retaken

LABELS = torch.tensor([0, 1, 0, 0, 1, 1, 0, 1, 1])
SIZE = (64, 64)


def pictures() -> Tensor:
    """Images of two products: stripes along the one direction and the other, with noise."""
    noise = torch.randn(len(LABELS), 3, *SIZE, generator=torch.Generator().manual_seed(0)) / 4
    stripes = (torch.arange(64) // 4 % 2 * 2.0 - 1).expand(64, 64)
    return noise + torch.where(LABELS.bool()[:, None, None, None], stripes, stripes.T)


def network(**arguments: object) -> CCLModel:
    torch.manual_seed(0)
    return CCLModel("mobilenetv3_small_100", pre_trained=False, **arguments).eval()


def passes(images: Tensor, labels: Tensor = LABELS, size: int = 4) -> Callable[[str], Iterator[Labelled]]:
    """Passes over images in batches, in mixed order."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(size))

    def make(description: str) -> Iterator[Labelled]:
        assert description
        for numbers in order.split(size):
            yield Labelled(images[numbers], labels[numbers], numbers, [f"{number}.png" for number in numbers])

    return make


def state(of: CCLModel) -> dict[str, Tensor]:
    return {name: value for name, value in of.state_dict().items() if name.startswith(("calibration.", "memory."))}


@torch.no_grad()
def by_hand(of: CCLModel) -> tuple[torch.Tensor, Tensor]:
    """Scores of each image, and both levels, image by image, with a memory whose every vector's image is known."""
    sample = PatchSample()
    for number, image in enumerate(pictures()):
        sample.add(patches_of(of.network.encode(image[None])[0]), LABELS[number, None], torch.tensor([number]))
    owners = of.memory.build(sample)
    maps = []
    for number, image in enumerate(pictures()):
        label = LABELS[number, None]
        patches = patches_of(of.network.encode(image[None])[0])
        own = owners[label] == number
        view = retaken(image[None], torch.tensor([number]))
        maps.append((of.look(view)[0].reconstruction, of.memory(patches, label, SIZE, own)))
    each = torch.tensor([[0.0 if m is None else m.max() for m in pair] for pair in maps])
    levels = np.stack([np.sort(each[c == LABELS], axis=0)[(sum(c == LABELS) - 1) // 2] for c in (0, 1)])
    fused = []
    for (of_reconstruction, of_memory), label in zip(maps, LABELS, strict=True):
        if of_reconstruction is None:
            fused.append(of_memory.max())
        else:
            first, second = of_reconstruction / levels[label, 0], of_memory / levels[label, 1]
            fused.append((RECONSTRUCTION_SHARE * first + (1 - RECONSTRUCTION_SHARE) * second).max())
    return torch.stack(fused), torch.from_numpy(levels)


@pytest.mark.parametrize(("reconstructs", "memory"), [(True, 12), (True, 320), (False, 320)])
def test_vectors_of_an_image_have_no_part_in_its_own_score(reconstructs: bool, memory: int) -> None:
    """Of 320 vectors, each is a patch: those of an image itself would give it a score of 0."""
    model = network(memory=memory, reconstructs=reconstructs)
    found = calibrate(model, passes(pictures()))
    assert torch.equal(found.labels, LABELS)
    vectors = model.memory.vectors.clone()
    expected, levels = by_hand(network(memory=memory, reconstructs=reconstructs))
    assert vectors.shape[:2] == (2, memory)
    torch.testing.assert_close(found.scores, expected, rtol=1e-3, atol=1e-4)
    if reconstructs:
        torch.testing.assert_close(model.calibration.levels[:2].double(), levels.double(), rtol=1e-3, atol=1e-4)
    if not reconstructs:  # looked up as any image is, it finds its own patches
        with torch.no_grad():
            assert (model(pictures(), LABELS).raw_score[:, 0] < 0.1 * found.scores).all()


def test_without_a_memory_an_image_is_scored_as_if_photographed_once_more() -> None:
    model = network()
    found = calibrate(model, passes(pictures()))
    with torch.no_grad():
        expected = network()(retaken(pictures(), torch.arange(len(LABELS))))
    torch.testing.assert_close(found.scores, expected.raw_score[:, 0], rtol=1e-4, atol=1e-5)
    assert not model.memory.is_built
    assert model.calibration.levels.unique().tolist() == [1]


@pytest.mark.parametrize(("memory", "tiles"), [(0, (1, 1)), (12, (1, 1)), (12, (1, 2))])
def test_the_order_and_the_batches_of_the_images_do_not_matter(
    memory: int, tiles: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if tiles != (1, 1):  # a sample of 60 of the 320 patches of a class, which is the same too
        channels = sum(m.shape[1] for m in network().network.encode(pictures()[:1])[0])
        monkeypatch.setattr("anomalib_ccl.model.patches._SAMPLE_VALUES", 60 * channels)
    states = []
    for size in (1, 9):
        model = network(memory=memory, tiles=tiles)
        width = model.tiling.image_size(SIZE)[1]
        calibrate(model, passes(pictures().repeat(1, 1, 1, 2)[..., :width], size=size))
        states.append(state(model))
    torch.testing.assert_close(states[0], states[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("memory", [0, 12])
def test_a_second_calibration_forgets_the_first(memory: int) -> None:
    model, once = network(memory=memory), network(memory=memory)
    calibrate(model, passes(2 * pictures().flip(-1)))
    calibrate(model, passes(pictures()))
    calibrate(once, passes(pictures()))
    for name, value in state(once).items():
        assert torch.equal(state(model)[name], value), name


@pytest.mark.parametrize("options", [{}, {"memory": 12}, {"memory": 12, "reconstructs": False}])
def test_added_classes_leave_the_known_ones_to_the_bit_and_are_scored_by_their_own(options: dict) -> None:
    model = network(**options)
    calibrate(model, passes(pictures()))
    before = state(model)
    flat = torch.rand(4, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, *SIZE)
    new = flat + 0.1 * torch.randn(4, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    calibrate(model, passes(new, torch.zeros(4, dtype=torch.long)), add=True)
    for name, value in state(model).items():
        known = value if name == "memory.components" else value[:2]
        assert torch.equal(known, before[name][:2] if name != "memory.components" else before[name]), name
    assert len(model.calibration.prototypes) == 3
    assert len(model.memory.vectors) == (3 if options else 0)
    # All that was found of the new class is what is found of it alone.
    alone = network(**options)
    calibrate(alone, passes(new, torch.zeros(4, dtype=torch.long)))
    torch.testing.assert_close(model.calibration.prototypes[2], alone.calibration.prototypes[0])
    torch.testing.assert_close(model.calibration.levels[2], alone.calibration.levels[0])
    if options:
        torch.testing.assert_close(model.memory.vectors[2], alone.memory.vectors[0])


def test_the_only_image_of_a_class_is_compared_with_itself() -> None:
    labels = torch.tensor([0] * 8 + [1])
    model = network(memory=12, reconstructs=False)
    found = calibrate(model, passes(pictures(), labels))
    assert found.scores.isfinite().all()
    assert found.scores[-1] == found.scores.min()
    assert model.calibration.limits.isfinite().all()


def test_no_map_is_magnified_without_bounds() -> None:
    """Where all images of a class are one, its memory is at no distance from them."""
    images = pictures()
    images[LABELS == 1] = images[1].clone()
    model = network(memory=12)
    calibrate(model, passes(images))
    levels = model.calibration.levels
    assert (levels[:2] >= 0.0099 * levels[2]).all()


def test_what_cannot_be_calibrated_is_refused_and_named() -> None:
    for value in (torch.nan, torch.inf):
        broken = pictures()
        broken[3] = value
        with pytest.raises(InputError, match=r"1 of the 9 normal images have a score of NaN or infinity, .* diverged"):
            calibrate(network(), passes(broken))
        with pytest.raises(InputError, match=r"features of normal images are NaN or infinite; .* full precision"):
            calibrate(network(memory=400), passes(broken))
    for memory in (0, 12):
        with pytest.raises(InputError, match=r"needs at least one image of each class, .* none of class 1"):
            calibrate(network(memory=memory), passes(pictures(), 2 * LABELS))
