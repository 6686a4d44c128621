"""The memory of each class against slow formulas, and the sample that it is chosen from."""

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_ccl.model.anomaly_map import smooth
from anomalib_ccl.model.memory import ClassMemory
from anomalib_ccl.model.patches import PatchSample, k_centre, patches_of, pooled_features

SIZE = (64, 96)


def test_patches_are_unit_vectors_of_each_scale_the_coarsest_averaged_position_by_position() -> None:
    sizes = ((5, (8, 12)), (6, (4, 6)), (7, (2, 3)))
    maps = [torch.randn(2, c, *size, generator=torch.Generator().manual_seed(c)) for c, size in sizes]
    patches = patches_of(maps)
    assert patches.shape == (2, 18, 4, 6)

    def unit(m: Tensor, i: int, row: int, column: int, reach: int = 0) -> Tensor:
        rows, columns = (slice(max(at - reach, 0), at + reach + 1) for at in (row, column))
        own = m[i, :, rows, columns].mean(dim=(1, 2))
        return own / own.norm()

    for i, row, column in ((0, 0, 0), (1, 2, 3), (0, 3, 5)):
        cells = [unit(maps[0], i, 2 * row + a, 2 * column + b) for a in (0, 1) for b in (0, 1)]
        torch.testing.assert_close(patches[i, :5, row, column], torch.stack(cells).mean(dim=0))
        torch.testing.assert_close(patches[i, 5:11, row, column], unit(maps[1], i, row, column))
    rows = [torch.stack([unit(maps[2], 1, r, c, reach=1) for c in range(3)], dim=1) for r in range(2)]
    expected = F.interpolate(torch.stack(rows, dim=1)[None], (4, 6), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(patches[1, 11:], expected)


@pytest.mark.parametrize("finest", [(15, 13), (8, 10), (4, 12), (3, 5)])
def test_maps_that_are_no_multiples_of_the_middle_one_are_brought_to_its_grid(finest: tuple[int, int]) -> None:
    maps = [torch.rand(1, 3, *finest), torch.rand(1, 4, 4, 6), torch.rand(1, 5, 2, 3)]
    assert patches_of(maps).shape == (1, 12, 4, 6)


def test_features_are_pooled_to_a_unit_vector_for_each_scale() -> None:
    maps = [torch.rand(3, 5, 8, 8), 100 * torch.rand(3, 7, 4, 4)]
    vectors = pooled_features([m.half() for m in maps])
    for image in range(3):
        means = [scale[image].flatten(1).mean(1) for scale in maps]
        expected = torch.cat([mean / (mean**2).sum().sqrt() for mean in means])
        torch.testing.assert_close(vectors[image], expected, atol=1e-3, rtol=0)
    assert pooled_features([torch.zeros(1, 4, 2, 2)]).tolist() == [[0, 0, 0, 0]]


def test_k_centre_takes_the_farthest_point_each_time_and_covers_all() -> None:
    points = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    expected = [int((points - points.mean(dim=0)).norm(dim=1).argmin())]
    for _ in range(9):
        expected.append(int(torch.cdist(points, points[expected]).amin(dim=1).argmax()))
    assert k_centre(points, 10).tolist() == expected
    # No point is farther from its centre than the centres are from each other.
    apart = torch.cdist(points[expected], points[expected]).fill_diagonal_(torch.inf).min()
    assert torch.cdist(points, points[expected]).amin(dim=1).max() <= apart
    assert set(k_centre(points[:3], 5).tolist()) == {0, 1, 2}


def sampled(patches: Tensor, labels: Tensor, order: list[list[int]]) -> PatchSample:
    sample = PatchSample()
    for batch in order:
        sample.add(patches[batch], labels[batch], torch.tensor(batch))
    return sample


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep 100 patches of six channels of each class, of 160 and 80."""
    monkeypatch.setattr("anomalib_ccl.model.patches._SAMPLE_VALUES", 600)


@pytest.mark.usefixtures("few")
def test_a_sample_is_the_same_in_whatever_batches_and_processes_the_images_come() -> None:
    patches, labels = torch.randn(15, 6, 4, 4), torch.arange(15) % 3 // 2
    expected = sampled(patches, labels, [list(range(15))])
    in_batches = sampled(patches, labels, [[3, 1, 2], [14], [0, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]])
    merged = sampled(patches, labels, [[0, 2, 4], [6, 8, 10, 12, 14]])
    merged.merge(sampled(patches, labels, [[1, 3, 5, 7, 9, 11, 13]]))
    for sample in (expected, in_batches, merged):
        assert {label: len(own) for label, own in sample.patches.items()} == {0: 100, 1: 80}
        for label in (0, 1):
            assert torch.equal(sample.patches[label], expected.patches[label])
            assert torch.equal(sample.images[label], expected.images[label])
    # Each patch is where its image says.
    flat = patches.half().flatten(2).transpose(1, 2)
    for patch, image in zip(expected.patches[0], expected.images[0], strict=True):
        assert (flat[image] == patch).all(dim=1).any()
    assert set(expected.images[0].tolist()) == set((labels == 0).nonzero().flatten().tolist())


def built(channels: int = 6, size: int = 9) -> tuple[ClassMemory, Tensor, Tensor, Tensor]:
    """A memory of two classes of three images each, their patches and labels, and the image of each vector."""
    patches = torch.randn(6, channels, 8, 12, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    found = ClassMemory(size)
    owners = found.build(sampled(patches, labels, [[0, 1, 2], [3, 4, 5]]))
    return found, patches, labels, owners


def slow(patches: Tensor, vectors: Tensor) -> Tensor:
    """The map of one image: how far each patch is from the nearest of some vectors."""
    nearest = [min((patch - vector).norm() for vector in vectors) for patch in patches.flatten(1).T]
    distances = torch.stack(nearest).view(1, 1, *patches.shape[1:])
    return smooth(F.interpolate(distances, SIZE, mode="bilinear", align_corners=False), 2 * 64 / 256)[0]


def test_a_known_product_looks_in_its_own_memory_and_an_unknown_one_in_all() -> None:
    found, _, _, _ = built()
    patches = torch.randn(3, 6, 8, 12, generator=torch.Generator().manual_seed(1))
    maps = found(patches, torch.tensor([1, 2, 0]), SIZE)
    assert maps.shape == (3, 1, *SIZE)
    for actual, own, vectors in zip(
        maps, patches, (found.vectors[1], found.vectors.flatten(0, 1), found.vectors[0]), strict=True
    ):
        torch.testing.assert_close(actual, slow(own, vectors), rtol=1e-4, atol=1e-4)


def test_excluded_vectors_do_not_count() -> None:
    found, patches, labels, _ = built()
    excluded = torch.rand(6, 9, generator=torch.Generator().manual_seed(1)) < 0.5
    maps = found(patches, labels, SIZE, excluded)
    for i in range(6):
        own = found.vectors[labels[i]]
        torch.testing.assert_close(maps[i], slow(patches[i], own[~excluded[i]]), rtol=1e-4, atol=1e-4)


def test_vectors_lie_among_the_patches_of_their_class_nearer_than_k_centres_and_belong_to_most_of_them() -> None:
    found, patches, labels, owners = built(size=60)
    points = patches.half().float().flatten(2).transpose(1, 2)
    for label in (0, 1):
        own, image = points[labels == label].flatten(0, 1), labels.eq(label).nonzero().repeat_interleave(96)
        distances = torch.cdist(own, found.vectors[label])
        nearest = distances.argmin(dim=1)
        assert (
            distances.square().amin(dim=1).sum() < torch.cdist(own, own[k_centre(own, 60)]).square().amin(dim=1).sum()
        )
        for vector in range(60):
            counts = torch.bincount(image[nearest == vector], minlength=6)
            expected = int(counts.argmax()) if 2 * counts.max() > counts.sum() else -1
            assert owners[label, vector] == expected
    assert (owners >= 0).any()
    assert (owners < 0).any()


def test_as_many_vectors_as_patches_are_the_patches() -> None:
    found, patches, labels, owners = built(size=300)
    flat = patches.half().float().flatten(2).transpose(1, 2)
    for label in (0, 1):
        for vector, owner in zip(found.vectors[label, :288:7], owners[label, :288:7], strict=True):
            assert labels[owner] == label
            assert (flat[owner] == vector).all(dim=1).any()


def test_wide_patches_are_projected_and_keep_their_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    # 250 channels in which there are 20 dimensions.
    mixing = torch.randn(20, 250, generator=generator) / 10
    patches = (torch.randn(5, 8, 12, 20, generator=generator) @ mixing).permute(0, 3, 1, 2)
    sample = sampled(patches[:4], torch.tensor([0, 0, 1, 1]), [[0, 1, 2, 3]])
    found, state = ClassMemory(192), torch.random.get_rng_state()
    found.build(sample)
    assert found.components.shape == (250, 192)
    assert found.vectors.shape == (2, 192, 192)
    assert torch.equal(torch.random.get_rng_state(), state)
    (actual,) = found(patches[4:], torch.tensor([0]), SIZE)
    torch.testing.assert_close(actual, slow(patches[4], sample.patches[0].float()), rtol=0.02, atol=0.02)


def test_too_few_wide_patches_for_components_stay_as_they_are() -> None:
    found = ClassMemory(9)
    found.build(sampled(torch.randn(2, 250, 4, 4), torch.tensor([0, 1]), [[0, 1]]))
    assert found.vectors.shape == (2, 9, 250)


def test_added_and_removed_classes_leave_the_others_to_the_bit() -> None:
    found, _, _, _ = built()
    before = found.vectors
    owners = found.build(sampled(torch.randn(2, 6, 8, 12), torch.zeros(2, dtype=torch.long), [[0, 1]]), add=True)
    assert owners.shape == (1, 9)
    assert torch.equal(found.vectors[:2], before)
    found.remove(0)
    assert torch.equal(found.vectors[0], before[1])
    assert len(found.vectors) == 2


def test_a_state_loads_into_a_memory_of_any_size_and_resets_one() -> None:
    found, patches, labels, _ = built()
    loaded = ClassMemory(3)
    loaded.load_state_dict(found.state_dict())
    assert loaded.size == 9
    assert torch.equal(loaded(patches, labels, SIZE), found(patches, labels, SIZE))
    loaded.load_state_dict(ClassMemory(9).state_dict())
    assert not loaded.is_built
    found.reset()
    assert not found.is_built


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_distances_are_computed_in_single_precision(dtype: torch.dtype) -> None:
    found, patches, labels, owners = built()
    with torch.autocast("cpu", dtype):
        again, _, _, again_owners = built()
        maps = again(patches, labels, SIZE)
    assert torch.equal(again.vectors, found.vectors)
    assert torch.equal(again_owners, owners)
    # Only the smoothing of the map, a convolution, is of half precision.
    torch.testing.assert_close(maps.float(), found(patches, labels, SIZE), rtol=0.02, atol=0.02)


def test_an_exported_memory_gives_the_same_maps(tmp_path: Path) -> None:
    """Its graph branches for images of unknown products; whole models are among the slow tests."""
    found, patches, _, _ = built()

    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory = found

        def forward(self, patches: Tensor, index: Tensor) -> Tensor:
            return self.memory(patches, index, SIZE)

    batch = torch.export.Dim("batch")
    inputs, shapes = (patches[:2], torch.tensor([0, 2])), ({0: batch}, {0: batch})
    path = tmp_path / "memory.onnx"
    torch.onnx.export(Sized().eval(), inputs, path, dynamic_shapes=shapes, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    names = [given.name for given in session.get_inputs()]
    for index in ([0, 1, 0], [2], [1, 2, 0, 0]):
        given = patches[: len(index)], torch.tensor(index)
        (maps,) = session.run(None, dict(zip(names, (x.numpy() for x in given), strict=True)))
        torch.testing.assert_close(torch.from_numpy(maps), found(*given, SIZE), rtol=1e-4, atol=1e-4)
