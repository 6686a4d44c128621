"""What ``docs/expectations.md`` says can be done, and adds up."""

import re
import runpy
import sys
from math import ceil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/expectations.md").read_text(encoding="utf-8")


def test_every_file_that_is_named_is_there() -> None:
    named = set(re.findall(r"\b(?:configs|examples|anomalib_ccl)/[\w/]+\.(?:yaml|py)", PAGE))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_costs_are_the_product_of_steps_and_operations() -> None:
    (of_step,) = (float(number) for number in re.findall(r"([\d.]+) TFLOP in a batch of 16", PAGE))
    table = PAGE[PAGE.index("| hours at") :]
    rows = re.findall(r"\| [\w -]+ \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d.]+) \|", table)
    assert len(rows) == 6
    for row in rows:
        images, steps, peta, hours = (float(cell.replace(",", "")) for cell in row)
        assert steps == 100 * ceil(images / 16)
        assert peta == pytest.approx(of_step * steps / 1000, abs=0.6)
        assert hours == pytest.approx(of_step * steps / 10 / 3600, abs=0.06)


def test_operations_of_a_step_are_counted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    counted = {}
    for size in (32, 64):
        words = ["--batch_size=8", "--model.backbone=resnet18", f"--model.image_size=[{size},{size}]"]
        # Without the local loss, which compares each position with each other one.
        monkeypatch.setattr(sys, "argv", ["step_flops.py", *words, "--model.local_weight=0"])
        runpy.run_path(str(ROOT / "examples/step_flops.py"), run_name="__main__")
        printed = capsys.readouterr().out
        forward, backward, step = (float(number) for number in re.findall(r"([\d.]+) TFLOP", printed))
        assert step == pytest.approx(forward + backward, abs=0.0015)
        counted[size] = step
    assert counted[64] == pytest.approx(4 * counted[32], abs=0.003)
    assert counted[32] > 0
