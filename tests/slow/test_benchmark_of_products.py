"""``examples/benchmark.py``: each job once, the same weights with and without a memory, one table of all products."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
from typed import ROOT

MODELS = ["plain", "memory", "patchcore", "padim-each"]
ROWS = ["plain", "plain-memory", "memory", "patchcore", "padim-each"]


def benchmark(root: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    options = ["--epochs=1", "--image_size=64", "--half", "A=brick", "B=retina", *words]
    line = [sys.executable, str(ROOT / "examples/benchmark.py"), str(root), *options]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True)


def test_each_job_runs_once_and_the_table_has_means_over_products_and_seeds(sample_root: Path, tmp_path: Path) -> None:
    root, output = tmp_path / "data", tmp_path / "runs/table"
    for name in ("brick", "retina"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(sample_root / name)
    done = benchmark(root, tmp_path, "--models", *MODELS, "--seeds", "0")
    assert done.stdout.count(": done") == 3 + len(("brick", "retina"))
    more = benchmark(root, tmp_path, "--models", "memory", "--seeds", "0", "1")
    assert more.stdout.count(": done") == 1
    table = pd.read_csv(output / "table.csv", index_col="model")
    assert list(table.index) == ROWS
    assert table["seeds"].to_dict() == {row: 2 if row == "memory" else 1 for row in ROWS}
    assert (table["products"] == 2).all()
    for row in ROWS:
        name = row.removesuffix("-each")
        jobs = [output / f"{name}-{x}seed0.csv" for x in (["brick-", "retina-"] if row.endswith("-each") else [""])]
        jobs += [output / "memory-seed1.csv"] if row == "memory" else []
        figures = pd.concat(map(pd.read_csv, jobs))
        assert set(figures["category"]) == {"brick", "retina"}
        assert figures[["false_alarms", "missed"]].notna().all().all(), row
        assert (figures[["milliseconds", "megabytes"]] > 0).all().all()
        mean = 100 * figures["image_AUROC"].mean()
        assert float(str(table.loc[row, "image_AUROC"]).split(" ")[0]) == round(mean, 1)
    before = {path: path.stat().st_mtime_ns for path in output.glob("*seed*.csv")}
    again = benchmark(root, tmp_path, "--models", *MODELS, "--seeds", "0")
    assert "done" not in again.stdout
    assert {path: path.stat().st_mtime_ns for path in output.glob("*seed*.csv")} == before
