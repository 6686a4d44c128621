"""Time and peak memory of the local loss, forward and backward, against its textbook formulation.

Each image has two positives at each position, one in its second view and one in another image of its class.
The maps are in the order in which the network gives them, channels last.
64 × 64 positions, 256 channels, batch 16: the finest scale of WideResNet-50-2 at 256 × 256 pixels.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch
from peak_memory import peak_mebibytes
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn import functional as F

from anomalib_ccl.model.local_loss import LocalContrastiveLoss, draw_in_class_positives, draw_negatives

BATCH, CHANNELS, SIDE, TEMPERATURE = 16, 256, 64, 0.05


def textbook(f: Tensor, g: Tensor, p: Tensor, k: Tensor, labels: Tensor) -> Tensor:
    """One similarity matrix for the batch and each positive, and normalised copies of all maps."""
    f, g, p, k = (F.normalize(x.flatten(2), dim=1) for x in (f, g, p, k))
    negatives, in_class = draw_negatives(labels, 1)[0][:, 0], draw_in_class_positives(labels)[0]
    negative = (p * k[negatives]).sum(dim=1) / TEMPERATURE
    losses = []
    for seen, projected in ((g, k), (f[in_class], p[in_class])):
        match = (f.transpose(1, 2) @ seen).argmax(dim=2)
        positive = (p * projected.gather(2, match[:, None].expand_as(projected))).sum(dim=1) / TEMPERATURE
        losses.append(torch.logaddexp(positive, negative) - positive)
    return torch.stack(losses).mean()


def ours(f: Tensor, g: Tensor, p: Tensor, k: Tensor, labels: Tensor) -> Tensor:
    return LocalContrastiveLoss(TEMPERATURE)([f], [g], [p], [k], labels)


def measure(name: str) -> dict[str, float]:
    """One forward and backward pass in this fresh process: its seconds and the memory it adds at its peak."""
    torch.manual_seed(0)
    maps = (torch.randn(BATCH, SIDE, SIDE, CHANNELS).permute(0, 3, 1, 2) for _ in range(4))
    f, g, p, k = (x.requires_grad_(i > 1) for i, x in enumerate(maps))
    labels = torch.arange(BATCH) % 5  # no image is alone in its class
    loss = globals()[name]
    # Start-up costs of torch, on copies: the gradient of a part of a map would be as large as the map.
    small = (x.detach()[:4, :, :4, :4].clone().requires_grad_(i > 1) for i, x in enumerate((f, g, p, k)))
    loss(*small, labels[:4] // 2).backward()
    before = peak_mebibytes()
    start = time.perf_counter()
    value = loss(f, g, p, k, labels)
    value.backward()
    seconds = time.perf_counter() - start
    peak = peak_mebibytes() - before
    return {"seconds": seconds, "mebibytes": peak, "loss": value.item(), "gradient": p.grad.norm().item()}


def measure_in_subprocess(name: str) -> dict[str, float]:
    return json.loads(subprocess.check_output([sys.executable, __file__, name], text=True))


def test_local_loss_against_textbook(benchmark: BenchmarkFixture, record_ratio: Callable[..., None]) -> None:
    pairs = [(measure_in_subprocess("ours"), measure_in_subprocess("textbook")) for _ in range(3)]
    _, (a, b), _ = sorted(pairs, key=lambda pair: pair[0]["seconds"] / pair[1]["seconds"])
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    assert a["gradient"] == pytest.approx(b["gradient"], rel=1e-3)
    assert a["mebibytes"] < 0.3 * b["mebibytes"]
    benchmark.pedantic(measure_in_subprocess, ("ours",), rounds=1)
    for quantity, unit in (("seconds", "s"), ("mebibytes", "MiB")):
        record_ratio("local loss, forward and backward", quantity, a[quantity], b[quantity], unit)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
