"""Every command and every example of the pages about the line runs as it is typed there."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typed import ROOT, blocks

from anomalib_ccl import CCLInferencer
from anomalib_ccl.limits import read_limits

RUN = Path("results/CCL/MultiCategory/latest")
MODEL = RUN / "weights/openvino/model.xml"


class Terminal:
    """Runs what is typed: each program in a process of its own, but ours, from the second time on, in this one."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
        self.patch, self.capsys = monkeypatch, capsys
        self.seen: set[str] = set()
        # The programs of this environment, and "python" even where it has another name.
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin/python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (folder / "bin/python").chmod(0o755)
        path = [str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        monkeypatch.setenv("PATH", os.pathsep.join(path))
        monkeypatch.setenv("RUN", str(RUN))
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        monkeypatch.chdir(folder)

    def type(self, block: str) -> str:
        """Type a block and return what it printed."""
        output = ""
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(os.path.expandvars(line))
            if words[:2] == ["python", "-m"] and words[2] in self.seen:
                self.patch.setattr(sys, "argv", words[2:])
                runpy.run_module(words[2], run_name="__main__")
                output += self.capsys.readouterr().out
                continue
            self.seen.add(words[2])
            result = subprocess.run(["bash", "-euc", line], capture_output=True, text=True, check=False)
            assert result.returncode == 0, line + result.stdout + result.stderr
            output += result.stdout
        return output

    def run(self, block: str) -> str:
        """Run a block of Python and return what it printed."""
        exec(block, {})
        return self.capsys.readouterr().out


@pytest.fixture
def terminal(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Terminal:
    return Terminal(folder, monkeypatch, capsys)


@pytest.fixture(scope="module")
def folder(trained: Path, new_root: Path, sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted, under the names that they use."""
    folder = tmp_path_factory.mktemp("line")
    (folder / RUN / "weights/lightning").mkdir(parents=True)
    for copy in (folder / RUN / "weights/lightning/model.ckpt", folder / "model.ckpt"):
        shutil.copy(trained, copy)
    for name in ("all", "relit"):
        (folder / "datasets" / name).mkdir(parents=True)
    for category in ("brick", "grass", "retina"):
        (folder / "datasets/relit" / category).symlink_to(sample_root / category)
        (folder / "datasets/all" / category).symlink_to(sample_root / category)
    (folder / "datasets/new").symlink_to(new_root)
    for category in new_root.iterdir():
        (folder / "datasets/all" / category.name).symlink_to(category)
    shutil.copytree(ROOT / "examples/cpp", folder / "examples/cpp")
    shutil.copy(sample_root / "retina/test/good/000.png", folder / "image.png")
    return folder


def test_products_come_and_go_as_the_page_says(folder: Path, terminal: Terminal) -> None:
    add, fit, relight, forget, in_python = blocks(ROOT / "docs/adding-products.md")
    output = terminal.type(add)
    assert re.search(r"tissue +6 ", output)
    assert output.strip().endswith(f"Written: {RUN}/added.ckpt")
    terminal.type(fit)
    (further,) = (folder / "further").rglob("model.ckpt")
    assert read_limits(further).class_names == ["brick", "grass", "gravel_fine", "retina", "tissue"]
    assert re.search(r"retina +6 ", terminal.type(relight))
    terminal.type(forget)
    assert read_limits(folder / RUN / "without.ckpt").class_names == ["grass", "retina", "gravel_fine", "tissue"]
    assert "gravel_fine" in terminal.run(in_python)
    assert read_limits(folder / "model-3.ckpt").class_names == ["grass", "retina", "gravel_fine", "tissue"]


def test_limits_are_set_and_a_program_scores_by_them_as_the_page_says(folder: Path, terminal: Terminal) -> None:
    limits, in_python, program, inferencer = blocks(ROOT / "docs/at-the-line.md")
    output = terminal.type(limits)
    assert re.search(r"retina +\d\.\d{4}", output)
    assert '"false_alarm_rate": 0.01' in output
    assert read_limits(folder / MODEL).false_alarm_rate == 0.01
    assert terminal.run(in_python).endswith("1.0\n")

    if not (shutil.which("cmake") and shutil.which("c++")):
        pytest.skip("needs CMake and a C++ compiler")
    recognised, said = terminal.type(program).splitlines()[-2:]
    ours = CCLInferencer(folder / MODEL, device="CPU")
    image = Image.open(folder / "image.png").convert("RGB")
    for line, product in ((recognised, None), (said, "retina")):
        prediction = ours.predict(image, product=product)
        name, score, verdict = line.split(", ")
        assert name == prediction.explanation[0]
        assert float(score.removeprefix("score ")) == pytest.approx(prediction.pred_score.item(), abs=0.02)
        assert verdict == ("anomalous" if prediction.pred_label.item() else "normal")
    for file in (folder / MODEL).parent.iterdir():
        shutil.copy(file, folder)
    assert terminal.run(inferencer).startswith(str([recognised.partition(",")[0]]))


def test_the_program_says_what_it_misses(folder: Path) -> None:
    if not (folder / "build/predict").exists():
        pytest.skip("needs CMake and a C++ compiler, and the test before this one")
    Path(folder / "grey.ppm").write_bytes(b"P5 2 2 255 1234")
    for arguments, message in {
        ("image.ppm", "nut"): "the model does not know the product nut",
        ("grey.ppm",): "grey.ppm is no binary PPM of 8 bits",
        (): "usage: predict MODEL.xml IMAGE.ppm [PRODUCT]",
    }.items():
        command = [folder / "build/predict", MODEL, *arguments]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert result.returncode == 1
        assert message in result.stderr
