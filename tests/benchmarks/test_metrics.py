"""Time and memory of the report against anomalib's AUROC, AUPR and AUPRO on the same maps of 256 x 256."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.metrics import AUPR, AUPRO, AUROC
from peak_memory import peak_mebibytes
from torch.nn import functional as F

from anomalib_ccl.metrics.category import CategoryMetrics, with_mean

BATCH = 20


def batches(images: int, side: int = 256) -> Iterator[ImageBatch]:
    """Maps of noise; every second image has a few defects, about 3 % of its pixels."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(images // BATCH):
        mask = F.avg_pool2d(torch.randn(BATCH, 1, side, side, generator=generator), 31, 1, 15)[:, 0] > 0.06
        mask[::2] = False
        anomaly_map = torch.randn(mask.shape, generator=generator).exp() + mask
        yield ImageBatch(
            image=torch.zeros(BATCH, 3, 1, 1),
            anomaly_map=anomaly_map,
            pred_score=anomaly_map.amax(dim=(1, 2)),
            gt_mask=mask,
            gt_label=mask.any(dim=(1, 2)),
        )


class Report:
    """The report on images that belong to this many categories in turn."""

    def __init__(self, images: int, categories: int) -> None:
        names = [f"{image * categories // images:02}" for image in range(images)]
        self.metrics = CategoryMetrics(names, [0, 1] * (images // 2))
        self.images = torch.arange(images).split(BATCH)
        self.batch = 0

    def update(self, batch: ImageBatch) -> None:
        self.metrics.update(self.images[self.batch], batch.pred_score, batch.anomaly_map, batch.gt_mask)
        self.batch += 1

    def compute(self) -> list[float]:
        mean = with_mean(self.metrics.compute()).iloc[-1]
        return [mean["pixel_AUROC"], mean["pixel_AP"], mean["pixel_AUPRO"]]


class Anomalib:
    """anomalib's three metrics of pixels."""

    def __init__(self) -> None:
        self.metrics = [kind(fields=["anomaly_map", "gt_mask"]) for kind in (AUROC, AUPR, AUPRO)]

    def update(self, batch: ImageBatch) -> None:
        for metric in self.metrics:
            metric.update(batch)

    def compute(self) -> list[float]:
        return [metric.compute().item() for metric in self.metrics]


def measure(name: str, images: int) -> dict[str, float | list[float]]:
    """All images in this fresh process: seconds, without making the maps, and memory added at the peak."""
    makers = {
        "report": lambda n: Report(n, 1),
        "report15": lambda n: Report(n, 15),
        "anomalib": lambda _: Anomalib(),
    }
    for count, side in (
        (2 * BATCH, 8),
        (images, 256),
    ):  # the first time for the start-up costs of the libraries
        metrics = makers[name](count)
        before = peak_mebibytes()
        seconds = 0.0
        for batch in batches(count, side):
            start = time.perf_counter()
            metrics.update(batch)
            seconds += time.perf_counter() - start
        start = time.perf_counter()
        figures = metrics.compute()
        seconds += time.perf_counter() - start
        peak = peak_mebibytes() - before
    return {"seconds": seconds, "mebibytes": peak, "figures": figures}


def measure_in_subprocess(name: str, images: int) -> dict[str, float | list[float]]:
    return json.loads(subprocess.check_output([sys.executable, __file__, name, str(images)], text=True))


@pytest.mark.benchmark(group="report")
def test_report_against_anomalib(benchmark, record_ratio):
    ours, theirs = measure_in_subprocess("report", 500), measure_in_subprocess("anomalib", 500)
    assert ours["figures"] == pytest.approx(theirs["figures"], abs=1e-3)
    many = benchmark.pedantic(measure_in_subprocess, ("report15", 500), rounds=1)
    for quantity, unit in (("seconds", "s"), ("mebibytes", "MiB")):
        record_ratio("report, 500 images", quantity, ours[quantity], theirs[quantity], unit)
        record_ratio("report, 500 images in 15 categories", quantity, many[quantity], theirs[quantity], unit)


@pytest.mark.benchmark(group="report")
def test_memory_does_not_grow_with_the_images(benchmark, record_ratio):
    few = measure_in_subprocess("report", 100)
    many = benchmark.pedantic(measure_in_subprocess, ("report", 10_000), rounds=1)
    record_ratio("report, 10,000 images against 100", "mebibytes", many["mebibytes"], few["mebibytes"], "MiB")
    # 9,900 more maps and masks would be 3,094 MiB; what the allocator keeps differs by 30 MiB from run to run.
    assert many["mebibytes"] - few["mebibytes"] < 70

    # Real-IAD has 150,000 images. Both sides grow linearly from here on.
    anomalib = measure_in_subprocess("anomalib", 250), measure_in_subprocess("anomalib", 500)
    for quantity, unit in (("seconds", "s"), ("mebibytes", "MiB")):
        ours, theirs = (
            a[quantity] + (150_000 - n) * (b[quantity] - a[quantity]) / (m - n)
            for a, n, b, m in ((few, 100, many, 10_000), (anomalib[0], 250, anomalib[1], 500))
        )
        record_ratio("report, 150,000 images, projected", quantity, ours, theirs, unit)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
