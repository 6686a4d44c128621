"""Keeps the reports of ``anomalib benchmark``, whose jobs run in folders that are deleted after them."""

import os
from datetime import datetime
from functools import cache
from pathlib import Path

import pandas as pd
from anomalib.pipelines.benchmark.job import BenchmarkJob

from anomalib_ccl.training.callers import caller


def keep_benchmark_rows(report: pd.DataFrame, content: str = "categories") -> Path | None:
    """Append a report to a CSV file of the benchmark that is running, if one is.

    The file is ``runs/benchmark/<time>-<process>-<content>.csv``, beside the folders of anomalib's own
    ``results.csv``. Its first columns are ``run`` (1, 2, … in the order in which the process ran its jobs,
    which is that of the rows of ``results.csv``) and ``model``, its last ones the configuration of the job,
    as in ``results.csv``. A benchmark on several GPUs has one process, and so one file, for each.

    Args:
        report: One row for each category, or image.
        content: What the rows are of, in the plural.

    Returns:
        The file, or None outside a benchmark.

    Example:
        >>> keep_benchmark_rows(pd.DataFrame({"category": ["bottle"]})) is None
        True
    """
    running = caller("BenchmarkJob", "run")
    if running is None:
        return None
    job: BenchmarkJob = running["self"]
    path = Path(f"{_benchmark_csv()}-{content}.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = [pd.read_csv(path)] if path.exists() else []
    run = 1 + max((frame["run"].max() for frame in earlier), default=0)
    configuration = {key: str(value) for key, value in job.flat_cfg.items()}
    head = {"run": run, "model": job.model.name}
    rows = [{**head, **row, **configuration} for row in report.to_dict("records")]
    pd.concat([*earlier, pd.DataFrame(rows)]).to_csv(path, index=False)
    return path


@cache
def _benchmark_csv() -> str:
    """One name for the whole process."""
    started = datetime.now().strftime("%Y-%m-%d-%H_%M_%S")
    return f"runs/{BenchmarkJob.name}/{started}-{os.getpid()}"
