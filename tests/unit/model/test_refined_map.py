"""The refined map is its formula, and sees what the paper's map does not."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.transform import resize

from anomalib_ccl.model.anomaly_map import anomaly_map
from anomalib_ccl.model.refined_map import refined_map

SIZE = (128, 96)


def maps(seed: int, shift: float = 0.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, c, h, w, generator=generator) + shift for c, h, w in ((8, 16, 12), (16, 8, 6))]


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return 1 - float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def surroundings(m: np.ndarray, row: int, column: int) -> np.ndarray:
    """Mean of the 3 × 3 positions around one, or of those of them that there are."""
    rows, columns = slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2)
    return m[:, rows, columns].mean(axis=(1, 2))


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
    f, d = features[-1], reconstructed[-1]
    wide = [2 * distance(surroundings(f, i, j), surroundings(d, i, j)) for i, j in np.ndindex(f.shape[1:])]
    layers.append(np.array(wide).reshape(f.shape[1:]))
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


def test_a_faint_change_of_a_wide_area_stands_out_of_the_noise_of_single_positions() -> None:
    generator = torch.Generator().manual_seed(0)
    reconstructed = [torch.ones(1, 8, 32, 32), torch.ones(1, 16, 16, 16)]
    features = [m + 2 * torch.randn(m.shape, generator=generator) for m in reconstructed]
    features[-1][0, :8, 4:12, 4:12] += 1.5
    inside = torch.zeros(256, 256, dtype=torch.bool)
    inside[80:176, 80:176] = True

    def separation(result: torch.Tensor) -> float:
        defect, rest = result[0, 0][inside], result[0, 0][~inside]
        return ((defect.mean() - rest.mean()) / rest.std()).item()

    assert separation(refined_map(features, reconstructed, (256, 256))) > 1.5 * separation(
        anomaly_map(features, reconstructed, (256, 256))
    )


@pytest.mark.parametrize("side", [64, 256])
def test_the_map_of_a_picture_does_not_depend_on_the_size_at_which_it_is_drawn(side: int) -> None:
    features, reconstructed = maps(0), maps(1)
    large = refined_map(features, reconstructed, (512, 512))[0, 0].numpy()
    small = refined_map(features, reconstructed, (side, side))[0, 0].numpy()
    assert np.abs(resize(large, (side, side), anti_aliasing=True) - small).mean() < 0.03 * small.mean()
