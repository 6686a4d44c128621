"""Speed, size and memory of exported models, against PyTorch and against anomalib's ReverseDistillation.

256 x 256 pixels, one thread, random weights, on which speed does not depend; CCL knows 15 classes. Latency is that of
one image of known size, throughput that of OpenVINO's throughput mode, of PyTorch with batches of 8. "f32" and "bf16"
are OpenVINO's precision hint: it computes in bfloat16 by itself where the processor can. What is not quantised in an
INT8 model is computed in the precision of the hint. "plain" is anomalib's ReverseDistillation; for
tf_efficientnet_lite0, which that does not know, ours without projections and classes stands in for it.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from anomalib.deploy import CompressionType, ExportType
from anomalib.engine import Engine
from inference_models import build
from inference_process import SIZE
from pytest_benchmark.fixture import BenchmarkFixture

from anomalib_ccl import MultiCategory
from anomalib_ccl.data import make_sample_dataset

ROUNDS = {"wide_resnet50_2": 9, "tf_efficientnet_lite0": 40}
PROCESS = str(Path(__file__).with_name("inference_process.py"))
INT8 = CompressionType.INT8_PTQ
Export = Callable[..., Path]
Record = Callable[[str, str, float, float, str], None]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """``export(backbone, kind, compression=None)``: the .xml file."""
    pytest.importorskip("nncf", reason="needs pip install '.[int8]'")
    folder = tmp_path_factory.mktemp("inference")
    root = make_sample_dataset(folder / "sample", train=1, test_good=1, per_defect=1)
    data = MultiCategory(root=root, categories=["brick"], eval_batch_size=1, num_workers=0)
    engine = Engine(default_root_dir=folder, logger=False)
    exported: dict[tuple, Path] = {}

    def export(backbone: str, kind: str, compression: CompressionType | None = None) -> Path:
        key = (backbone, kind, compression)
        if key not in exported:
            exported[key] = engine.export(
                build(backbone, kind),
                ExportType.OPENVINO,
                export_root=folder / "-".join(map(str, key)).replace(" ", "-"),
                input_size=None if kind.startswith("recommended") else SIZE,
                compression_type=compression,
                datamodule=data,
            )
        return exported[key]

    return export


def in_fresh_process(*arguments: object) -> list[float]:
    command = [sys.executable, "-W", "ignore", PROCESS, *map(str, arguments)]
    output = subprocess.check_output(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True)
    return json.loads(output.splitlines()[-1])


@pytest.mark.benchmark(group="inference")
@pytest.mark.parametrize("backbone", ROUNDS)
def test_speed(benchmark: BenchmarkFixture, record_ratio: Record, export: Export, backbone: str) -> None:
    fp32, int8 = export(backbone, "standard"), export(backbone, "standard", INT8)
    fp16, light = export(backbone, "standard", CompressionType.FP16), export(backbone, "light")
    plain, plain_int8 = export(backbone, "plain"), export(backbone, "plain", INT8)
    pairs = {
        "FP32, f32, against PyTorch": (f"{fp32} f32", f"{backbone} standard"),
        "FP32, bf16, against PyTorch": (f"{fp32} bf16", f"{backbone} standard"),
        "FP16, f32, against FP32, f32": (f"{fp16} f32", f"{fp32} f32"),
        "INT8, f32, against FP32, f32": (f"{int8} f32", f"{fp32} f32"),
        "INT8, f32, against FP32, bf16": (f"{int8} f32", f"{fp32} bf16"),
        "FP32, f32, against plain": (f"{fp32} f32", f"{plain} f32"),
        "light, FP32, f32, against plain": (f"{light} f32", f"{plain} f32"),
        "INT8, f32, against plain INT8": (f"{int8} f32", f"{plain_int8} f32"),
    }
    for name, pair in pairs.items():
        ours, reference = in_fresh_process("latency", ROUNDS[backbone], *pair)
        record_ratio(f"{backbone}: {name}", "latency", ours, reference, "ms")
    for name in ("FP32, f32, against PyTorch", "FP32, bf16, against PyTorch", "INT8, f32, against FP32, f32"):
        ours, reference = in_fresh_process("throughput", 3, *pairs[name])
        record_ratio(f"{backbone}: {name}", "throughput", 1000 / ours, 1000 / reference, "/s")
    benchmark.pedantic(in_fresh_process, ("latency", 3, f"{int8} f32", f"{plain_int8} f32"), rounds=1)


@pytest.mark.benchmark(group="inference")
@pytest.mark.parametrize("backbone", ROUNDS)
def test_size_and_loading(benchmark: BenchmarkFixture, record_ratio: Record, export: Export, backbone: str) -> None:
    fp32 = export(backbone, "standard")
    reference = [size(fp32), *in_fresh_process("loading", fp32)]
    for form in (CompressionType.FP16, INT8):
        path = export(backbone, "standard", form)
        record_all(
            record_ratio,
            f"{backbone}: {form.name} against FP32",
            [size(path), *in_fresh_process("loading", path)],
            reference,
        )
    benchmark.pedantic(in_fresh_process, ("loading", fp32), rounds=1)


@pytest.mark.benchmark(group="inference")
@pytest.mark.parametrize("backbone", ROUNDS)
def test_one_model_against_many(
    benchmark: BenchmarkFixture, record_ratio: Record, export: Export, backbone: str, tmp_path: Path
) -> None:
    one, plain = export(backbone, "standard", INT8), export(backbone, "plain", INT8)
    copies = [Path(shutil.copytree(plain.parent, tmp_path / str(number))) / plain.name for number in range(15)]
    ours = [size(one), *benchmark.pedantic(in_fresh_process, ("loading", one), rounds=1)]
    for count in (5, 15):
        theirs = [sum(map(size, copies[:count])), *in_fresh_process("loading", *copies[:count])]
        record_all(record_ratio, f"{backbone}: one INT8 model against {count} plain", ours, theirs)


@pytest.mark.benchmark(group="inference")
@pytest.mark.parametrize("side", [160, 256])
def test_memory_of_few_and_many_products(
    benchmark: BenchmarkFixture, record_ratio: Record, export: Export, side: int
) -> None:
    backbone = "tf_efficientnet_lite0"
    none, few, many = (export(backbone, f"recommended {classes} {side}") for classes in (0, 5, 60))
    for name, pair in {
        "a memory of 60 products against one of 5": (many, few),
        "a memory of 5 products against none": (few, none),
    }.items():
        ours, reference = in_fresh_process("latency", ROUNDS[backbone], *(f"{path} f32 {side}" for path in pair))
        record_ratio(f"{backbone}, {side} pixels: {name}", "latency", ours, reference, "ms")
    record_ratio(f"{backbone}, {side} pixels: 60 products against 5", "disk", size(many), size(few), "MiB")
    benchmark.pedantic(in_fresh_process, ("latency", 3, f"{many} f32 {side}", f"{few} f32 {side}"), rounds=1)


def size(path: Path) -> float:
    """MiB of a model's files."""
    return sum(path.with_suffix(suffix).stat().st_size for suffix in (".xml", ".bin")) / 2**20


def record_all(record_ratio: Record, what: str, ours: list[float], reference: list[float]) -> None:
    for quantity, unit, a, b in zip(("disk", "loading", "memory"), ("MiB", "ms", "MiB"), ours, reference, strict=True):
        record_ratio(what, quantity, a, b, unit)
