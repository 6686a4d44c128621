"""``anomalib-ccl``: each of its commands, as typed, and how it ends where the input is to blame."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from anomalib.engine import Engine

from anomalib_ccl import CCL, MultiCategory
from anomalib_ccl.export.limits import read_limits

COMMANDS = ["limits", "recalibrate", "insight", "sample", "authors"]
DATA = ["--data=MultiCategory", "--data.num_workers=0"]


@pytest.fixture
def ccl(run, tmp_path):
    """Run a command of ours in a folder of its own, and return what it printed."""

    def run_ccl(*words: str | Path, code: int = 0) -> str:
        done = run("anomalib-ccl", *words, cwd=tmp_path)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if code == 0 else done.stderr

    return run_ccl


@pytest.mark.parametrize("start", [["anomalib-ccl"], ["python", "-m", "anomalib_ccl.cli"]])
def test_help_lists_the_commands_and_imports_nothing_heavy(start, tmp_path):
    program = Path(sys.executable).with_name(start[0]) if start[0] != "python" else sys.executable
    done = subprocess.run(
        [sys.executable, "-X", "importtime", program, *start[1:], "--help"]
        if start[0] != "python"
        else [program, "-X", "importtime", *start[1:], "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(re.search(rf"^ +{command} ", done.stdout, re.MULTILINE) for command in COMMANDS)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "anomalib", "openvino", "pandas"}


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_its_arguments(command, ccl):
    output = ccl(command, "--help")
    assert "usage: anomalib-ccl" in output
    assert not re.search(r"^ +--\w+ \S+$\n +\(", output, re.MULTILINE)  # an option without a word of explanation


def test_the_version_is_that_of_the_package(ccl):
    assert importlib.metadata.version("anomalib-ccl") in ccl("--version")


def test_limits_are_printed_and_set(ccl, checkpoint):
    table = ccl("limits", checkpoint)
    assert [line.split()[0] for line in table.splitlines() if re.search(r" \d+\.\d{4}", line)] == [
        *read_limits(checkpoint).class_names,
        "unknown",
    ]
    assert "False-alarm rate 0.01, scored at 64 × 64 pixels." in table
    printed = json.loads(ccl("limits", checkpoint, "--false_alarm_rate=0.05", "--json"))
    limits = read_limits(checkpoint)
    assert printed["false_alarm_rate"] == limits.false_alarm_rate == 0.05
    assert [row["limit"] for row in printed["products"]] == limits.limits


def test_products_are_added_and_forgotten(ccl, checkpoint, new_root):
    options = [*DATA, f"--data.root={new_root}", "--add", "--output=added.ckpt"]
    output = ccl("recalibrate", f"--ckpt_path={checkpoint}", *options)
    assert re.search(r"tissue +6 +\d+\.\d{4}", output)
    assert "Limits for 1 % of false alarms, from 12 normal images." in output
    assert "Left out: 4 normal images that the split keeps" in output
    assert "These products were only added: the network has not been trained on them" in output
    assert "6 images of tissue are few" in output
    assert output.endswith("Written: added.ckpt\n")
    ccl("recalibrate", "--ckpt_path=added.ckpt", "--remove=grass", "--output=without.ckpt")
    names = read_limits(checkpoint.with_name("without.ckpt")).class_names
    assert names == ["brick", "retina", "gravel_fine", "tissue"]


def test_further_folders_are_laid_out_as_those_of_the_training_unless_another_layout_is_given(
    ccl, sample_root, new_root, tmp_path
):
    root = tmp_path / "products"
    for product in ("brick", "grass"):
        shutil.copytree(sample_root / product / "train/good", root / product / "fine")
    for product in new_root.iterdir():
        shutil.copytree(product / "train/good", tmp_path / "new" / product.name / "fine")
    layout = {"normal_dir": Path("fine")}
    data = MultiCategory("Folder", root, dataset_args=layout, val_split_mode="none", num_workers=0)
    model = CCL("test_efficientnet", (64, 64), "memory", memory=20, pre_trained=False, visualizer=False)
    Engine(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False).fit(model, data)
    (trained,) = tmp_path.glob("CCL/**/v0/**/model.ckpt")
    add = ["recalibrate", f"--ckpt_path={trained}", *DATA, "--add"]

    output = ccl(*add, "--data.root=new", "--output=added.ckpt")
    assert "from 10 normal images.\nLeft out: 2 normal images" in output
    output = ccl(*add, "--data.root=new", "--data.test_split_ratio=0", "--output=all.ckpt")
    assert "from 12 normal images.\nLeft out: 0 normal images" in output
    output = ccl(*add, f"--data.root={new_root}", "--data.dataset=MVTecAD", "--output=mvtec.ckpt")
    assert "from 12 normal images.\nLeft out: 4 normal images" in output
    insight = ["insight", f"--ckpt_path={trained}", *DATA, "--data.root=products"]
    assert "brick" in ccl(*insight)


def test_insight_leaves_a_table_and_three_pictures(ccl, checkpoint, sample_root, tmp_path):
    output = ccl("insight", f"--ckpt_path={checkpoint}", *DATA, f"--data.root={sample_root}", "--output=seen")
    assert {path.name for path in (tmp_path / "seen").iterdir()} == {
        "calibration.csv",
        "classes.png",
        "embedding.png",
        "scores.png",
    }
    named = set(pd.read_csv(tmp_path / "seen/calibration.csv")["category"])
    assert {"brick", "grass", "retina", "tissue", "mean"} <= named & set(output.split())


def test_the_sample_is_ready_for_the_command_that_is_printed(ccl, tmp_path):
    output = ccl("sample", "data", "--seed=1")
    fastest = "--model.recipe memory --model.backbone tf_efficientnet_lite0 --data MultiCategory --data.root data"
    assert output.splitlines()[-1] == f"  anomalib train --model CCL {fastest}"
    assert len(list((tmp_path / "data").glob("*/train/good"))) == 6
    assert "data" in ccl("sample", "data", code=1)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["limits", "absent.ckpt"], 1, "no checkpoint at absent.ckpt"),
        (["limits", "absent.xml"], 1, "absent.xml"),
        (["limits", "{checkpoint}", "--false_alarm_rate=0.7"], 1, r"\(0, 0.5\]"),
        (["recalibrate", "--ckpt_path={checkpoint}"], 1, "give either --data, .* or --remove NAME"),
        (["recalibrate", "--ckpt_path={checkpoint}", "--remove=bolt"], 1, "no product 'bolt' to remove"),
        (["recalibrate", "--ckpt_path=absent.ckpt", *DATA, "--add"], 1, "no checkpoint at absent.ckpt"),
        (["insight", "--ckpt_path={checkpoint}", *DATA, "--data.root=absent"], 1, "absent"),
        (["recalibrate", "--ckpt_path={checkpoint}", *DATA, "--add", "--data.root=absent"], 1, "there is no folder"),
        (["recalibrate", "--ckpt_path={checkpoint}", *DATA, "--add", "--data.dataset=MVTec"], 1, "'MVTec' is unknown"),
        (["authors", "absent.pth", "out.ckpt"], 1, "absent.pth"),
        (["authors", __file__, "out.ckpt"], 1, "is no checkpoint"),
        (["sample", f"{__file__}/data"], 1, "Not a directory"),
        (["sample", __file__], 1, "is there and does not hold the sample data set"),
        (["insight", "--ckpt_path={checkpoint}", *DATA, f"--output={__file__}"], 1, "File exists"),
        (["sample", "data", "--seed=-1"], 2, "seed"),
        (["limits"], 2, "file"),
        (["limts", "a.ckpt"], 2, "limts"),
        (["insight", "--ckpt_path={checkpoint}", "--data=MultiCategry"], 2, "MultiCategry"),
        ([], 2, "subcommand"),
    ],
)
def test_input_that_is_to_blame_ends_in_its_message(words, code, message, ccl, checkpoint):
    there = list(checkpoint.parent.iterdir())
    output = ccl(*(word.format(checkpoint=checkpoint) for word in words), code=code)
    assert re.search(message, output)
    if code == 1:
        assert re.fullmatch(r"error: .+\n", output)
    assert list(checkpoint.parent.iterdir()) == there


def test_errors_of_our_own_making_keep_their_traceback(run, tmp_path):
    code = """
from anomalib_ccl.cli import COMMANDS, main
COMMANDS["sample"] = COMMANDS["sample"]._replace(run=lambda **_: {}[0])
main(["sample", "data"])
"""
    done = run("python", "-c", code, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stdout + done.stderr
    assert "KeyError: 0" in done.stdout + done.stderr
