"""Every command and every example of the pages about the line runs as it is typed there."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from anomalib_ccl import CCLInferencer
from anomalib_ccl.limits import read_limits

ROOT = Path(__file__).parents[3]
RUN = Path("results/CCL/MultiCategory/latest")
MODEL = RUN / "weights/openvino/model.xml"


def blocks(page: str) -> Iterator[str]:
    """The indented blocks of a page."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for block in re.findall(r"(?:^ {4}.*\n|^\n)+", text, re.MULTILINE):
        if block.strip():
            yield "\n".join(line[4:] for line in block.strip("\n").splitlines())


def type_in(folder: Path, block: str) -> str:
    """Run a block as the shell or as Python and return what it printed."""
    if block.startswith("from "):
        command = [sys.executable, "-W", "ignore", "-c", block]
    else:
        command = ["bash", "-euc", block]
    # The programs of this environment, and "python" even where it has another name.
    (folder / "bin").mkdir(exist_ok=True)
    if not (folder / "bin/python").exists():
        (folder / "bin/python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (folder / "bin/python").chmod(0o755)
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "RUN": str(RUN), "PYTHONWARNINGS": "ignore"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, block + result.stdout + result.stderr
    return result.stdout


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


def test_products_come_and_go_as_the_page_says(folder: Path) -> None:
    add, fit, relight, forget, in_python = blocks("adding-products.md")
    output = type_in(folder, add)
    assert re.search(r"tissue +6 ", output)
    assert output.strip().endswith(f"Written: {RUN}/added.ckpt")
    type_in(folder, fit)
    (further,) = (folder / "further").rglob("model.ckpt")
    assert read_limits(further).class_names == ["brick", "grass", "gravel_fine", "retina", "tissue"]
    type_in(folder, relight)
    type_in(folder, forget)
    assert read_limits(folder / RUN / "without.ckpt").class_names == ["grass", "retina", "gravel_fine", "tissue"]
    assert "gravel_fine" in type_in(folder, in_python)
    assert read_limits(folder / "model-3.ckpt").class_names == ["grass", "retina", "gravel_fine", "tissue"]


def test_limits_are_set_and_a_program_scores_by_them_as_the_page_says(folder: Path) -> None:
    limits, in_python, program, inferencer = blocks("at-the-line.md")
    output = type_in(folder, limits)
    assert re.search(r"retina +\d\.\d{4}", output)
    assert '"false_alarm_rate": 0.01' in output
    assert read_limits(folder / MODEL).false_alarm_rate == 0.01
    assert type_in(folder, in_python).endswith("1.0\n")

    if not (shutil.which("cmake") and shutil.which("c++")):
        pytest.skip("needs CMake and a C++ compiler")
    recognised, said = type_in(folder, program).splitlines()[-2:]
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
    assert type_in(folder, inferencer).splitlines()[-1].startswith(str([recognised.partition(",")[0]]))


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
