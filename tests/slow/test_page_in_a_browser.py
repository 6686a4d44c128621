"""The page of a test as a browser shows it: thumbnails load, links lead to files, and it fits the screen."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import pytest
from anomalib.engine import Engine
from PIL import Image

from anomalib_ccl import CCL, MultiCategory
from anomalib_ccl.reports.heatmaps import CCLVisualizer, coloured

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
HARD = "ü & <b>#1 %20"
# The page has no scripts; in a copy, this one writes into the document what the browser has made of it.
LOOK = """<script>addEventListener("load", () => {
  const seen = {
    images: [...document.images].map(image => image.naturalWidth),
    links: [...document.links].map(link => link.href).filter(address => !address.includes("#")),
    anchors: [...document.links].filter(link => link.hash).map(link => !!document.querySelector(link.hash)),
    drawings: [...document.querySelectorAll(".histogram")].map(drawing => drawing.getBoundingClientRect().height),
    overflow: document.documentElement.scrollWidth - innerWidth,
  };
  document.body.dataset.seen = JSON.stringify(seen);
})</script></body>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = [path for path in map(shutil.which, BROWSERS) if path]
    if not found:
        pytest.skip(f"no browser on the PATH: none of {', '.join(BROWSERS)}")
    return found[0]


@pytest.fixture(scope="module")
def page(trained_ccl: Path, products: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    root = shutil.copytree(products, folder / HARD)
    model = CCL.load_from_checkpoint(trained_ccl)
    model.visualizer = CCLVisualizer()
    engine = Engine(default_root_dir=folder / f"run {HARD}", accelerator="cpu", enable_progress_bar=False)
    engine.test(model, datamodule=MultiCategory(root=root, num_workers=0, val_split_mode="none"))
    return Path(engine.trainer.default_root_dir) / "report.html"


def start(browser: str, page: Path, *arguments: str) -> str:
    command = [browser, "--headless", "--no-sandbox", "--hide-scrollbars", *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, check=True, timeout=120).stdout.decode()


@pytest.mark.parametrize("width", [1400, 500])
def test_every_thumbnail_loads_every_link_leads_to_a_file_and_nothing_sticks_out(
    browser: str, page: Path, width: int
) -> None:
    watched = page.with_name("watched.html")
    watched.write_text(page.read_text(encoding="utf-8").replace("</body>", LOOK), encoding="utf-8")
    found = re.search('data-seen="([^"]*)"', start(browser, watched, f"--window-size={width},900", "--dump-dom"))
    assert found
    seen = json.loads(html.unescape(found[1]))
    assert len(seen["images"]) > 2
    assert min(seen["images"]) > 10
    assert len(seen["links"]) > 1
    assert all(Path(url2pathname(urlsplit(address).path)).is_file() for address in seen["links"])
    assert seen["anchors"] == [True] * 3
    assert len(seen["drawings"]) == 3
    assert min(seen["drawings"]) > 50
    assert seen["overflow"] <= 0


def test_what_is_shown_has_the_colours_of_maps_and_histograms(browser: str, page: Path, tmp_path: Path) -> None:
    start(browser, page, "--window-size=1400,1600", f"--screenshot={tmp_path / 'page.png'}")
    with Image.open(tmp_path / "page.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    for colour in ([0x56, 0xB4, 0xE9], *coloured(np.array([0.0, 0.25, 0.75, 1.0]))):
        assert (np.abs(pixels - colour).sum(axis=1) < 20).sum() > 5
