"""Examples and commands that train several models, or quantize one."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typed import ROOT


@pytest.fixture
def two(sample_root: Path, tmp_path: Path) -> Path:
    """Two products."""
    root = tmp_path / "two"
    root.mkdir()
    for product in ("brick", "retina"):
        (root / product).symlink_to(sample_root / product)
    return root


@pytest.fixture
def typed(run: Callable, tmp_path: Path) -> Callable[..., str]:
    """``typed("anomalib", …)``: what was printed, where the command ends well."""

    def run_typed(*words: str | Path) -> str:
        done = run(*words, cwd=tmp_path, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run_typed


def test_comparing_exports_prints_a_row_for_each_form(typed: Callable, trained_ccl: Path, two: Path) -> None:
    output = typed("python", ROOT / "examples/compare_exports.py", trained_ccl, two)
    table = output[output.index("size  latency") :].splitlines()[1:]
    assert [line.split()[0] for line in table[:4]] == ["PyTorch", "FP32", "FP16", "INT8_PTQ"]


def test_training_example_prints_the_table_and_a_prediction(typed: Callable, sample_root: Path) -> None:
    output = typed("python", ROOT / "examples/train.py", sample_root, "--epochs=1")
    assert re.search(r"^ +mean ", output, re.MULTILINE)
    assert f"{sample_root}/brick/test/foreign/000.png: score " in output


def test_benchmark_collects_ccl_and_reverse_distillation_in_one_csv(typed: Callable, two: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "configs/benchmark/sample.yaml").read_text())
    for model in config["benchmark"]["model"]["grid"]:
        model["init_args"]["pre_trained"] = False
    config["benchmark"]["data"]["init_args"].update(root=str(two), max_epochs=1, num_workers=0)
    (tmp_path / "benchmark.yaml").write_text(yaml.safe_dump(config))
    typed("anomalib", "benchmark", "--config=benchmark.yaml")
    (results,) = (tmp_path / "runs/benchmark").glob("*/results.csv")
    rows = list(csv.DictReader(results.open()))
    assert [row["model.class_path"] for row in rows] == ["CCL", "ReverseDistillation"]
    assert all(0 < float(row["mean_pixel_AUROC"]) < 1 for row in rows)


def test_left_out_products_are_added_and_compared(typed: Callable, two: Path) -> None:
    output = typed("python", ROOT / "examples/left_out.py", two, "--image_size=64")
    for product in ("brick", "retina", "mean"):
        assert re.search(rf"^{product}( +\d+\.\d){{10}}$", output, re.MULTILINE), output
