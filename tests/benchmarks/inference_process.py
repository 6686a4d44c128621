"""What a fresh process of test_inference.py measures."""

import json
import statistics
import sys
import time
from collections.abc import Callable

import openvino
import psutil
import torch

SIZE = (256, 256)


def compiled(path: str, hint: str, mode: str, size: tuple[int, int] = SIZE) -> openvino.CompiledModel:
    """A model for single images of one size, as ``CCLInferencer(path, image_size=size)`` makes it."""
    core = openvino.Core()
    model = core.read_model(path)
    model.reshape([1, 3, *size])
    config = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": mode.upper()}
    return core.compile_model(model, "CPU", config)


def runner(spec: str, mode: str) -> Callable[[], object]:
    """One inference of one image or, for the throughput, of 8, of "PATH HINT [SIDE]" or "BACKBONE KIND"."""
    first, second, *side = spec.split()
    size = (int(side[0]), int(side[0])) if side else SIZE
    image = torch.rand(1, 3, *size)
    if not first.endswith(".xml"):
        from inference_models import build  # noqa: PLC0415  # anomalib, which takes seconds

        model, batch = build(first, second), image if mode == "latency" else image.expand(8, -1, -1, -1)
        return lambda: model(batch)
    model = compiled(first, second, mode, size)
    if mode == "latency":
        request = model.create_infer_request()
        return lambda: request.infer([image.numpy()])
    queue = openvino.AsyncInferQueue(model)

    def infer() -> None:
        for _ in range(8):
            queue.start_async([image.numpy()])
        queue.wait_all()

    return infer


def measure_pair(mode: str, rounds: int, *specs: str) -> list[float]:
    """Median milliseconds for each image of two models that run in turn."""
    torch.set_num_threads(1)
    seconds: list[list[float]] = [[], []]
    with torch.inference_mode():
        runners = [runner(spec, mode) for spec in specs]
        for run in runners:
            run()
        for _ in range(rounds):
            for run, own in zip(runners, seconds, strict=True):
                start = time.perf_counter()
                run()
                own.append(time.perf_counter() - start)
    images = 1 if mode == "latency" else 8
    return [statistics.median(own) * 1000 / images for own in seconds]


def measure_loading(*paths: str) -> list[float]:
    """Milliseconds until models are read and compiled, and MiB that they hold once they have run."""
    process = psutil.Process()  # not the peak of getrusage, which a new process takes over from pytest
    before = process.memory_info().rss
    start = time.perf_counter()
    models = [compiled(path, "f32", "latency") for path in paths]
    milliseconds = (time.perf_counter() - start) * 1000
    for model in models:
        model([torch.rand(1, 3, *SIZE).numpy()])
    return [milliseconds, (process.memory_info().rss - before) / 2**20]


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "loading":
        print(json.dumps(measure_loading(*arguments)))
    else:
        print(json.dumps(measure_pair(what, int(arguments[0]), *arguments[1:])))
