"""Runs the commands of a page as they are typed there, on small data and with a small network."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import miniatures
import pytest
import yaml
from anomalib.engine import Engine
from PIL import Image
from typed import ROOT, blocks

from anomalib_ccl import CCL, MultiCategory
from anomalib_ccl.export.limits import read_limits

RUN = Path("results/CCL/MultiCategory/v0")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Their commands run in the slow suite.
LONG = [page for page in PAGES if page.stem in {"export", "train"}]
# Commands and Python; other blocks show what is printed, or layouts.
TYPED = re.compile(
    r"(HF_HUB_OFFLINE=1 )?(anomalib|anomalib-ccl|python|make|pip|cmake|build/\w+|from|import|RUN=|\.venv/)\b"
)
# Commands that take long, or a compiler, and the test that runs them.
ELSEWHERE = {
    "examples/compare_exports.py": "tests/slow/test_long_commands.py",
    "examples/benchmark.py": "tests/slow/test_benchmark_of_products.py",
    "examples/demo.py": "tests/slow/test_demo.py",
    "examples/left_out.py": "tests/slow/test_long_commands.py",
}
NOT_RUN = {"make", "pip"}
SHORTER = {
    "examples/limit_estimator.py": ["2"],
    "examples/large_images.py": ["--epochs=1", "--size=64"],
    "examples/step_flops.py": ["--model.backbone=resnet18", "--model.image_size=[64,64]"],
}
SMALL = {
    "CCL": ["--model.backbone=test_efficientnet", "--model.pre_trained=false", "--model.image_size=[64,64]"],
    "Padim": ["--model.backbone=resnet18", "--model.pre_trained=false"],
}
SHORT = ["--trainer.accelerator=cpu", "--data.num_workers=0"]
IN_PYTHON = {
    "max_epochs=16": 'max_epochs=1, accelerator="cpu"',
    '"tf_efficientnet_lite0"': '"test_efficientnet", pre_trained=False, image_size=(64, 64)',
    '"model.xml"': f'"{RUN}/weights/openvino/model.xml"',
}


@pytest.fixture(scope="module")
def folder(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted, under the names that they use."""
    folder = tmp_path_factory.mktemp("pages")
    data = folder / "datasets"
    for name, products in {
        "sample": ["brick", "grass", "retina"],
        "relit": ["brick", "grass", "retina"],
        "new": ["tissue"],
        "all": ["brick", "grass", "retina", "tissue"],
    }.items():
        for product in products:
            shutil.copytree(sample_root / product, data / name / product)
    (data / "trays").symlink_to(data / "sample")
    for name in ("MVTecAD", "products"):
        miniatures.MINIATURES[name](data / name)
    (folder / "some/images").mkdir(parents=True)
    for target in ("IMAGE.png", "image.png", "some/images/0.png"):
        shutil.copy(sample_root / "retina/test/good/000.png", folder / target)
    for name in ("examples", "configs"):
        (folder / name).symlink_to(ROOT / name)
    model = CCL("test_efficientnet", pre_trained=False, image_size=(64, 64), visualizer=False)
    engine = Engine(max_epochs=1, default_root_dir=folder / "results", accelerator="cpu", enable_progress_bar=False)
    engine.fit(model, datamodule=MultiCategory(root=data / "sample", num_workers=0, train_batch_size=6))
    shutil.copy(folder / RUN / "weights/lightning/model.ckpt", folder)
    return folder


def small(words: list[str], folder: Path) -> list[str]:
    """The same command of anomalib, small and short."""
    command = words[0]
    if command == "benchmark":
        return ["benchmark", f"--config={small_benchmark(folder, words[2])}"]
    if command in {"fit", "train"}:
        model = words[words.index("--model") + 1] if "--model" in words else "CCL"
        further = "--ckpt_path" in words
        return [*words, *([] if further else SMALL[model]), *SHORT, f"--trainer.max_epochs={1 + further}"]
    if command == "test":
        return [*words, *SHORT]
    return words


def small_benchmark(folder: Path, config: str) -> Path:
    """The first model of a benchmark, on two categories, for one epoch."""
    benchmark = yaml.safe_load((folder / config).read_text())
    given = benchmark["benchmark"]
    model = given["model"]["grid"][0]
    model["init_args"] |= {"backbone": "test_efficientnet", "pre_trained": False, "image_size": [64, 64]}
    data = given["data"]["init_args"]
    data |= {"root": "datasets/sample", "categories": ["brick", "retina"], "max_epochs": 1, "num_workers": 0}
    path = folder / f"small_{Path(config).name}"
    path.write_text(
        yaml.safe_dump({"accelerator": "cpu", "benchmark": {"seed": 0, "model": model, "data": given["data"]}})
    )
    return path


def do(line: str, folder: Path, run: Callable[..., subprocess.CompletedProcess[str]]) -> str:
    """Do what a line says, and return what it printed."""
    words = shlex.split(re.sub(r"\$RUN\b", str(RUN), line).removeprefix("HF_HUB_OFFLINE=1 "), comments=True)
    named = words[1] if words[0] == "python" else None
    if words[0] in NOT_RUN or words[0].startswith(("RUN=", ".venv/")) or named in ELSEWHERE:
        check(words)
        return ""
    if words[0] in {"cmake", "build/predict"}:
        if not (shutil.which("cmake") and shutil.which("c++")):
            pytest.skip("needs CMake and a C++ compiler")
        return in_a_shell(line, folder)
    if words[0] == "anomalib":
        words = ["anomalib", *small(words[1:], folder)]
    done = run(*words, *SHORTER.get(words[1], []), cwd=folder, env={"PYTHONWARNINGS": "ignore"}, timeout=600)
    assert done.returncode == 0, line + done.stdout + done.stderr
    return done.stdout


def check(words: list[str]) -> None:
    """Check what is not run here."""
    if words[0].startswith("RUN="):
        assert words == [f"RUN={RUN}"]
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "pip":
        extra = re.search(r"\[(\w+)\]", " ".join(words))
        assert extra is None or re.search(rf"^{extra[1]} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    elif words[0] == "python":
        assert Path(words[1]).name in (ROOT / ELSEWHERE[words[1]]).read_text()
    else:
        assert (ROOT / words[-1]).is_file()


def in_a_shell(line: str, folder: Path) -> str:
    """Do it in processes of their own."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "RUN": str(RUN), "PATH": path}
    done = subprocess.run(
        ["bash", "-euc", line], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, line + done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    """What each command has printed."""
    return {}


def run_page(page: Path, folder: Path, run: Callable, printed: dict[str, str]) -> None:
    """Do all that a page says, and check what it has made."""
    for block in filter(TYPED.match, blocks(page)):
        if block.startswith(("from", "import")):
            code = re.sub("|".join(IN_PYTHON), lambda found: IN_PYTHON[found[0]], block)
            done = run("python", "-c", code, cwd=folder)
            assert done.returncode == 0, code + done.stdout + done.stderr
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if line not in printed:
                printed[line] = do(line, folder, run)
    if page.stem == "products":
        assert read_limits(folder / RUN / "without.ckpt").class_names == ["grass", "retina", "tissue"]
        assert read_limits(folder / "model-3.ckpt").class_names == ["grass", "retina", "tissue"]
        (further,) = (folder / "further").rglob("model.ckpt")
        assert read_limits(further).class_names == ["brick", "grass", "retina", "tissue"]
    if page.stem == "export":
        assert read_limits(folder / RUN / "weights/openvino/model.xml").false_alarm_rate == 0.02
        (found,) = (text for line, text in printed.items() if "predict_openvino.py" in line)
        assert re.search(r"IMAGE.png: \w+, score [01]\.\d+, (normal|anomalous)\n", found)
        assert Image.open(folder / "HEATMAP.png").width > 256
        assert_that_cpp_and_python_agree(folder, printed, run)


def assert_that_cpp_and_python_agree(folder: Path, printed: dict[str, str], run: Callable) -> None:
    model = folder / RUN / "line/weights/openvino/model.xml"
    for line in (line for line in printed if line.startswith("build/predict")):
        product = "retina" if line.endswith("retina") else None
        code = f"""
from anomalib_ccl import CCLInferencer
found = CCLInferencer({str(model)!r}, device="CPU").predict({str(folder / "image.ppm")!r}, product={product!r})
print(found.explanation[0], found.pred_score.item(), found.pred_label.item())
"""
        expected, score, anomalous = run("python", "-c", code, cwd=folder).stdout.splitlines()[-1].split()
        name, found, verdict = printed[line].strip().splitlines()[-1].split(", ")
        assert name == expected
        assert float(found.removeprefix("score ")) == pytest.approx(float(score), abs=0.02)
        assert verdict == ("anomalous" if anomalous == "True" else "normal")
