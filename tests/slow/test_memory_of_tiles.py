"""Large images take no more memory than a batch of their tiles."""

import sys
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from anomalib_ccl.model.torch_model import CCLModel


@torch.no_grad()
def _peaks(benchmarks: str) -> list[float]:
    """What 4 tiles add to this fresh process's peak of memory, 4 images of 16 tiles, and 4 images as a whole."""
    sys.path.append(benchmarks)
    from peak_memory import peak_mebibytes  # noqa: PLC0415

    arguments: dict[str, Any] = {"backbone": "resnet18", "pre_trained": False}
    plain, tiled = CCLModel(**arguments).eval(), CCLModel(**arguments, tiles=(4, 4)).eval()
    whole = torch.zeros(4, 3, *tiled.tiling.image_size((128, 128)))
    plain(whole[..., :32, :32])
    peaks = [peak_mebibytes()]
    for model, images in ((plain, whole[..., :128, :128]), (tiled, whole), (plain, whole)):
        model(images)
        peaks.append(peak_mebibytes())
    return [after - before for before, after in pairwise(peaks)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_tiles_take_the_memory_of_one_batch_of_them() -> None:
    benchmarks = str(Path(__file__).parents[1] / "benchmarks")
    with get_context("spawn").Pool(1) as pool:
        batch, tiles, whole = pool.apply(_peaks, (benchmarks,))
    assert tiles < batch + 10  # MiB; their maps
    assert whole > 5 * batch
