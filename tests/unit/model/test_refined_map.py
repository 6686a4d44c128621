"""The refined map is its formula, at any size."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.transform import resize

from anomalib_ccl.model.refined_map import refined_map

SIZE = (128, 96)


def maps(seed: int, shift: float = 0.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, c, h, w, generator=generator) + shift for c, h, w in ((8, 16, 12), (16, 8, 6))]


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return 1 - float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def slow(features: list[np.ndarray], reconstructed: list[np.ndarray]) -> np.ndarray:
    """The map of one image, position by position."""
    layers = []
    for f, d in zip(features, reconstructed, strict=True):
        positions = list(np.ndindex(f.shape[1:]))
        norms = np.array([np.linalg.norm(d[:, i, j]) for i, j in positions])
        values = [
            distance(f[:, i, j], d[:, i, j]) * math.sqrt(norm / norms.mean())
            for (i, j), norm in zip(positions, norms, strict=True)
        ]
        layers.append(np.array(values).reshape(f.shape[1:]))
    upsampled = [
        torch.nn.functional.interpolate(torch.tensor(x)[None, None], SIZE, mode="bilinear", align_corners=True)[0, 0]
        for x in layers
    ]
    return gaussian_filter(np.sum([x.numpy() for x in upsampled], axis=0), 2 * 96 / 256, mode="mirror", truncate=4)


def test_the_map_is_the_one_that_loops_over_positions_give() -> None:
    features, reconstructed = maps(0), maps(1)
    result = refined_map(features, reconstructed, SIZE)
    assert result.shape == (2, 1, *SIZE)
    for image in range(2):
        expected = slow(*([m[image].double().numpy() for m in side] for side in (features, reconstructed)))
        np.testing.assert_allclose(result[image, 0].numpy(), expected, atol=5e-3)


def test_the_map_is_nought_where_all_is_reconstructed_and_never_negative() -> None:
    features = maps(0)
    assert refined_map(features, features, SIZE).abs().max() < 1e-5
    assert refined_map(features, features, SIZE).min() >= 0
    dark = [torch.zeros_like(m) for m in features]
    assert refined_map(features, dark, SIZE).isfinite().all()


@pytest.mark.parametrize("side", [64, 256])
def test_the_map_of_a_picture_does_not_depend_on_the_size_at_which_it_is_drawn(side: int) -> None:
    features, reconstructed = maps(0), maps(1)
    large = refined_map(features, reconstructed, (512, 512))[0, 0].numpy()
    small = refined_map(features, reconstructed, (side, side))[0, 0].numpy()
    assert np.abs(resize(large, (side, side), anti_aliasing=True) - small).mean() < 0.03 * small.mean()
