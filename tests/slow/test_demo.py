"""``make demo`` on small images, and the seed that it sets."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from typed import ROOT

from anomalib_ccl.data import make_sample_dataset

PRODUCTS = {"brick", "grass", "gravel_coarse", "gravel_fine", "retina", "tissue"}
SMALL = ["--model.backbone=test_efficientnet", "--model.pre_trained=false", "--model.image_size=[64,64]"]
SHORT = ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--data.num_workers=0", "--model.visualizer=false"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of the project, with small data."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("configs", "examples"):
        (folder / name).symlink_to(ROOT / name)
    make_sample_dataset(folder / "datasets/sample", size=48, train=4, test_good=1, per_defect=2)
    return folder


def test_demo_prints_few_lines_and_ends_with_table_predictions_and_pictures(folder: Path) -> None:
    words = [sys.executable, "examples/demo.py", "--epochs=1", "--size=64"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (done.stdout + done.stderr).splitlines()
    assert len(lines) <= 60
    assert {*PRODUCTS, "mean"} <= {line.split()[0] for line in lines if line.strip()}
    predictions = [
        line for line in lines if re.fullmatch(r"\S+\.png: \w+, score [01]\.\d{3}, (normal|anomalous)", line)
    ]
    assert len(predictions) == 3
    run = folder / "results/demo/recommended/CCL/MultiCategory/latest"
    assert len(list((run / "insight").glob("*.png"))) == 3
    with Image.open(folder / "results/demo/demo.png") as picture:
        assert picture.width > 500


def test_a_demo_whose_command_fails_says_which_and_why(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    words = [sys.executable, "examples/demo.py", f"--root={folder / 'datasets/sample'}", "--size=65"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "image_size must be multiples of 32 pixels" in done.stdout
    assert "failed; all that it printed is in" in done.stderr


def test_seeded_training_repeats_to_the_digit(run, sample_root: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples/seeded.py", tmp_path)
    scores = []
    for seed in ("0", "0", "1"):
        words = [
            "python",
            "seeded.py",
            seed,
            "train",
            "--model=CCL",
            "--data=MultiCategory",
            f"--data.root={sample_root}",
        ]
        done = run(*words, *SMALL, *SHORT, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        scores.append(pd.read_csv(tmp_path / "results/CCL/MultiCategory/latest/predictions.csv")["score"])
    assert scores[0].equals(scores[1])
    assert not scores[0].equals(scores[2])
