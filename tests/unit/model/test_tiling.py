"""Cutting images into tiles, and putting the maps of tiles together."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from anomalib_ccl.errors import InputError
from anomalib_ccl.model.reconstruction.choice import check_image_size
from anomalib_ccl.model.tiling import Tiling
from anomalib_ccl.model.torch_model import CCLModel

GRIDS = [(1, 2), (2, 1), (2, 3), (4, 5)]


@pytest.mark.parametrize("tiles", GRIDS)
@pytest.mark.parametrize("tile", [(16, 32), (14, 22), (30, 31)])
def test_tiles_cover_the_image_and_merge_to_it(tiles: tuple[int, int], tile: tuple[int, int]) -> None:
    tiling = Tiling(tiles)
    size = tiling.image_size(tile)
    assert tiling.tile_size(size) == tile
    images = torch.rand(2, 3, *size)
    cut = tiling.cut(images)
    assert [t.shape for t in cut] == [(2, 3, *tile)] * (tiles[0] * tiles[1])
    assert torch.equal(cut[0], images[..., : tile[0], : tile[1]])
    assert torch.equal(cut[-1], images[..., -tile[0] :, -tile[1] :])
    assert torch.equal(tiling.merge(cut), images)


def test_one_tile_is_the_image_itself() -> None:
    images = torch.rand(2, 3, 40, 50)
    (tile,) = Tiling().cut(images)
    assert torch.equal(tile, images)
    assert Tiling().draw(images, ["a", "b"]) == (images, ["a", "b"])


def test_tiles_that_disagree_fade_into_each_other() -> None:
    """From 0 to 1 in equal steps, and no step is larger than one of the overlap."""
    left, right = torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)
    row = Tiling((1, 2)).merge([left, right])[0, 0, 5]
    assert row[:12].eq(0).all()
    assert row[16:].eq(1).all()
    torch.testing.assert_close(row[12:16], torch.tensor([0.125, 0.375, 0.625, 0.875]))
    torch.testing.assert_close(Tiling((2, 1)).merge([left, right])[0, 0, :, 5], row)


def test_a_ramp_has_no_seam() -> None:
    tiling = Tiling((3, 4))
    height, width = tiling.image_size((16, 24))
    ramp = torch.arange(height)[:, None] * 2.0 + torch.arange(width)
    # Each tile off by as much as a network may be off at the place.
    tiles = [tile + index / 10 for index, tile in enumerate(tiling.cut(ramp[None, None]))]
    merged = tiling.merge(tiles)[0, 0]
    assert merged.diff(dim=0).sub(2).abs().max() <= 0.4 / 4 + 1e-4  # 4 columns further, over 4 rows of overlap
    assert merged.diff(dim=1).sub(1).abs().max() <= 0.1 / 6 + 1e-4


def test_every_tile_is_drawn_with_its_name() -> None:
    tiling = Tiling((2, 3))
    images = torch.rand(300, 1, *tiling.image_size((8, 8)))
    drawn, names = tiling.draw(images, [f"{index}.png" for index in range(300)])
    tiles, places = tiling.cut(images), set()
    for index, (tile, name) in enumerate(zip(drawn, names, strict=True)):
        image, place = name.split()
        assert image == f"{index}.png"
        assert torch.equal(tile, tiles[int(place)][index])
        places.add(place)
    assert places == set("012345")


@pytest.mark.parametrize("tiles", [(2,), (1, 2, 3), (0, 1), (2, -1), (2.0, 1), ("2", "3"), (True, 2), "23", 3, None])
def test_what_is_no_grid_is_refused(tiles: Any) -> None:
    with pytest.raises(InputError, match="tiles must be two whole numbers from 1 on, the rows and the columns, got"):
        Tiling(tiles)


def test_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"images of 449 × 640 pixels cannot be cut into tiles=\(2, 3\), each overl"):
        check_image_size((449, 640), 32, Tiling((2, 3)))
    with pytest.raises(InputError, match="image_size must be multiples of 32 pixels and at least 32, got 60 × 64"):
        check_image_size(Tiling((2, 3)).image_size((60, 64)), 32, Tiling((2, 3)))
    check_image_size(None, 32, Tiling((2, 3)))


@pytest.fixture(scope="module")
def model() -> CCLModel:
    torch.manual_seed(0)
    return CCLModel("test_efficientnet", pre_trained=False, tiles=(2, 3)).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, *Tiling((2, 3)).image_size((32, 64)), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_map_score_and_embedding_are_those_of_the_tiles(model: CCLModel, images: Tensor) -> None:
    """By a slow way: an average in the overlap, weighted by hand."""
    plain = CCLModel("test_efficientnet", pre_trained=False).eval()
    plain.load_state_dict(model.state_dict())
    expected, weights = torch.zeros(2, 1, 56, 160), torch.zeros(56, 160)
    embeddings = []
    for row, column in product(range(2), range(3)):
        top, left = row * 24, column * 48
        scored = plain(images[..., top : top + 32, left : left + 64])
        weight = _fading(32, row, 2)[:, None] * _fading(64, column, 3)
        expected[..., top : top + 32, left : left + 64] += scored.anomaly_map * weight
        weights[top : top + 32, left : left + 64] += weight
        embeddings.append(scored.embedding)
    torch.testing.assert_close(weights, torch.ones(56, 160))
    actual = model(images)
    torch.testing.assert_close(actual.anomaly_map, expected)
    torch.testing.assert_close(actual.embedding, torch.stack(embeddings).mean(dim=0))
    assert torch.equal(actual.pred_score, actual.anomaly_map.amax(dim=(-2, -1)))


def _fading(length: int, place: int, count: int) -> Tensor:
    weights, shared = torch.ones(length), length // 4
    fade = (torch.arange(shared) + 0.5) / shared
    if place > 0:
        weights[:shared] = fade
    if place < count - 1:
        weights[-shared:] = 1 - fade
    return weights


@torch.no_grad()
def test_the_score_of_a_mean_over_the_map_is_that_of_its_worst_tile() -> None:
    """Dinomaly's: a defect in one of nine tiles is not lost among the others."""
    tiling = Tiling((3, 3))
    anomaly_map = torch.zeros(2, 1, *tiling.image_size((16, 16)))
    anomaly_map[1, 0, 20, 20] = 1.0
    assert tiling.score(lambda maps: maps.mean(dim=(-2, -1)), anomaly_map).tolist() == [[0.0], [1 / 256]]


@torch.no_grad()
def test_no_more_than_a_batch_of_tiles_goes_through_the_network(model: CCLModel, images: Tensor) -> None:
    seen = []
    handle = model.network.teacher.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    model(images)
    handle.remove()
    assert seen == [(2, 3, 32, 64)] * 6
