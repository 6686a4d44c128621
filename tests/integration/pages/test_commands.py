"""Every command on every page runs as it is typed there, on small data and with a small network.

The pages about the line have tests of their own in ``tests/integration/line/test_pages.py``.
"""

import os
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import miniatures
import pytest
import yaml
from anomalib.cli import AnomalibCLI
from anomalib.engine import Engine
from PIL import Image
from typed import ROOT, blocks

from anomalib_ccl import CCL, MultiCategory
from anomalib_ccl.plugin.shipped import with_shipped_configs

RUN = Path("results/CCL/MultiCategory/latest")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
THE_LINE = {"adding-products.md", "at-the-line.md"}
# Commands and Python; other blocks show what is printed.
TYPED = re.compile(r"(HF_HUB_OFFLINE=1 )?(anomalib|python|make|pip|cmake|from|import|RUN=)\b")
# Commands that take long and that another test runs.
ELSEWHERE = {
    "examples/own_network.py": "tests/integration/model/test_every_network.py",
    "examples/compare_exports.py": "tests/integration/plugin/test_cli.py",
    "examples/step_flops.py": "tests/integration/plugin/test_expectations.py",
}
SHORTER = {"examples/large_images.py": ["--epochs=1", "--size=64"]}
SMALL = {
    "CCL": ["--model.backbone=mobilenetv3_small_100", "--model.pre_trained=false", "--model.image_size=[64,64]"],
    "Padim": ["--model.backbone=resnet18", "--model.pre_trained=false"],
}
SHORT = ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--data.num_workers=0"]
IN_PYTHON = {
    '"wide_resnet50_2"': '"mobilenetv3_small_100", pre_trained=False, image_size=(64, 64)',
    "max_epochs=100, check_val_every_n_epoch=10": 'max_epochs=1, accelerator="cpu"',
}


@pytest.fixture(scope="module")
def folder(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted, under the names that they use."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "datasets").mkdir()
    shutil.copytree(sample_root, folder / "datasets/sample")
    (folder / "datasets/trays").symlink_to(folder / "datasets/sample")
    for name in ("MVTecAD", "products"):
        miniatures.MINIATURES[name](folder / "datasets" / name)
    (folder / "some/images").mkdir(parents=True)
    for target in ("IMAGE.png", "some/images/0.png"):
        Image.open(sample_root / "retina/test/good/000.png").save(folder / target)
    (folder / "examples").symlink_to(ROOT / "examples")
    model = CCL("mobilenetv3_small_100", pre_trained=False, image_size=(64, 64), visualizer=False)
    engine = Engine(max_epochs=1, default_root_dir=folder / "results", accelerator="cpu", enable_progress_bar=False)
    engine.fit(model, datamodule=MultiCategory(root=sample_root, num_workers=0, train_batch_size=12))
    return folder


def small(words: list[str]) -> list[str]:
    """The same command of anomalib, small and short."""
    if words[0] == "benchmark":
        return ["benchmark", f"--config={small_benchmark(Path(with_shipped_configs(words)[2]))}"]
    if words[0] in {"fit", "train"}:
        model = words[words.index("--model") + 1] if "--model" in words else "CCL"
        further = "--ckpt_path" in words
        return [*words, *([] if further else SMALL[model]), *SHORT, f"--trainer.max_epochs={1 + further}"]
    if words[0] == "test":
        return [*words, "--trainer.accelerator=cpu", "--data.num_workers=0"]
    return words


def small_benchmark(config: Path) -> Path:
    """The first model of a benchmark, on two categories, for one epoch."""
    benchmark = yaml.safe_load(config.read_text())
    given = benchmark["benchmark"]
    model = given["model"]["grid"][0]
    model["init_args"] |= {"backbone": "mobilenetv3_small_100", "pre_trained": False, "image_size": [64, 64]}
    data = given["data"]["init_args"]
    data |= {"root": "datasets/sample", "categories": ["brick", "retina"], "max_epochs": 1, "num_workers": 0}
    path = Path(f"small_{config.name}")
    path.write_text(
        yaml.safe_dump({"accelerator": "cpu", "benchmark": {"seed": 0, "model": model, "data": given["data"]}})
    )
    return path


def run(line: str) -> None:
    """Do what a line says, in this process."""
    words = shlex.split(os.path.expandvars(line).removeprefix("HF_HUB_OFFLINE=1 "), comments=True)
    if words[0].startswith("RUN="):
        assert words == [f"RUN={RUN}"]
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "pip":
        assert re.search(rf"^{words[2][2:-1]} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    elif words[0] == "anomalib":
        AnomalibCLI(small(words[1:]))
        # All commands are about the run that the pages take for granted, whichever page came first.
        RUN.unlink()
        RUN.symlink_to("v0")
    elif words[1] == "-m":
        sys.argv = words[2:]
        runpy.run_module(words[2], run_name="__main__")
    elif words[1] in ELSEWHERE:
        assert Path(words[1]).name in (ROOT / ELSEWHERE[words[1]]).read_text()
    else:
        sys.argv = [*words[1:], *SHORTER.get(words[1], [])]
        runpy.run_path(words[1], run_name="__main__")


@pytest.fixture(scope="module")
def typed() -> set[str]:
    """The commands that were typed already."""
    return set()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in THE_LINE], ids=lambda page: page.stem)
def test_every_command_of_a_page_runs(
    page: Path, folder: Path, typed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RUN", str(RUN))
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    for block in filter(TYPED.match, blocks(page)):
        if block.startswith(("from", "import")):
            exec(re.sub("|".join(IN_PYTHON), lambda found: IN_PYTHON[found[0]], block), {})
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if line not in typed:
                run(line)
                typed.add(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_points_to_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (page.parent / link).is_file(), link
    for path in re.findall(r"(?:configs|examples|tests|docs|anomalib_ccl)/[\w/]+\.(?:py|ya?ml|md|png|cpp)", text):
        assert (ROOT / path).is_file(), path


def test_the_readme_points_to_every_page_and_fits_a_screen_or_three() -> None:
    text = PAGES[0].read_text(encoding="utf-8")
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= set(re.findall(r"\]\(([^)]+)\)", text))
    assert len(text.splitlines()) <= 150


def test_the_messages_of_the_troubleshooting_page_are_those_of_the_code() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "anomalib_ccl").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 5
    for row in rows:
        for message in re.findall(r"`([^`]+)`", row):
            # What stands between names and values.
            for part in re.split(r"\W*…\W*|'[^']+'|\banomalib \w+ ", message):
                assert part.strip(" ;?") in source, part
