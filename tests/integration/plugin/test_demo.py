"""The commands of ``make demo``, on small images of the sample data and with two steps of training."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from anomalib_ccl.data import make_sample_dataset

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
SHORT = (
    "--model.backbone mobilenetv3_small_100 --model.pre_trained false --model.image_size '[64, 64]' "
    "--trainer.max_steps 2 --trainer.accelerator cpu --data.num_workers 2"
)
RUN = "results/CCL/MultiCategory"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of the project, with the data that the first command makes."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("configs", "examples", "Makefile", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    make_sample_dataset(folder / "datasets/sample", size=48, train=4, test_good=1, per_defect=3)
    return folder


@pytest.fixture(scope="module")
def commands(folder: Path) -> list[str]:
    """Train, look inside, export, show."""
    options = ["--dry-run", "--no-print-directory", f"--old-file={BIN}/.installed"]
    line = ["make", *options, f"BIN={BIN}", "demo"]
    printed = subprocess.run(line, cwd=folder, check=True, capture_output=True, text=True).stdout
    made, *commands = printed.replace("\\\n", " ").splitlines()
    assert made == f"{BIN}/python -m anomalib_ccl.data datasets/sample"
    assert len(commands) == 4
    return commands


def type_in(folder: Path, command: str) -> str:
    result = subprocess.run(command, shell=True, cwd=folder, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def trained(folder: Path, commands: list[str]) -> str:
    return type_in(folder, f"{commands[0]} {SHORT}")


def test_demo_ends_with_the_table_three_predictions_the_folder_and_the_picture(
    folder: Path, commands: list[str], trained: str
) -> None:
    *_, last = [type_in(folder, command) for command in commands[1:]]
    table, rest = last[: last.index("datasets/")], last[last.index("datasets/") :]
    named = {line.split()[0] for line in table.splitlines() if line.strip()}
    assert {"brick", "grass", "gravel_coarse", "gravel_fine", "retina", "tissue", "mean"} <= named
    assert all(line in trained for line in table.splitlines())
    *predictions, where = rest.splitlines()
    assert len(predictions) == 3
    for line in predictions:
        assert re.fullmatch(r"datasets/sample/\w+/test/\w+/\d+\.png: \w+, score [01]\.\d{3}, (normal|anomalous)", line)
    picture = folder / RUN / "latest/demo.png"
    assert where.endswith(f"{RUN}/latest/demo.png")
    with Image.open(picture) as image:
        assert image.width > 3 * image.height
    assert picture.stat().st_size < 300_000


@pytest.mark.usefixtures("trained")
def test_demo_repeats_to_the_digit(folder: Path, commands: list[str]) -> None:
    first = {name: (folder / RUN / "latest" / name).read_bytes() for name in ("categories.csv", "predictions.csv")}
    type_in(folder, f"{commands[0]} {SHORT}")
    again = {name: (folder / RUN / "latest" / name).read_bytes() for name in first}
    assert first == again
    assert len(list((folder / RUN).glob("v*"))) == 2
    scores = pd.read_csv(folder / RUN / "latest/predictions.csv")["score"]
    assert scores.nunique() > len(scores) / 2
