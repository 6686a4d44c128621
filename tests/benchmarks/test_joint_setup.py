"""Setting up the joint data set of the paper at its real size: 60 categories, 150,000 image files.

The aim is less than 60 s and 1 GiB on two cores. The images are of one pixel: setup looks at each file, but reads none.
"""

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from anomalib.data.datamodules.image.visa import VISA_CATEGORIES
from anomalib.data.datasets.image.btech import CATEGORIES as BTAD_CATEGORIES
from anomalib.data.datasets.image.mvtecad import CATEGORIES as MVTEC_CATEGORIES
from anomalib.data.datasets.image.realiad import CATEGORIES as REAL_IAD_CATEGORIES
from peak_memory import peak_mebibytes
from PIL import Image

from anomalib_ccl import MultiCategory

# Images of a category for training, normal ones for the test and defective ones, near the mean of its data set.
MVTEC, VISA, BTAD, REAL_IAD = (242, 31, 84), (721, 80, 100), (600, 147, 97), (1216, 1692, 1488)
CONFIG = Path(__file__).parents[2] / "configs/data/joint.yaml"


class Files:
    """Makes files that are all links to a few: a file system allows some ten thousands of links to one."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self._root, self._number = root, count()
        self._source = root

    def write(self, path: Path) -> None:
        number = next(self._number)
        if number % 20_000 == 0:
            self._source = self._root / f"{number}.png"
            Image.new("L", (1, 1), 255).save(self._source)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(self._source, path)


def make(root: Path) -> int:
    """Make the four data sets; the number of images, without masks."""
    files = Files(root)
    for path in (*layout("MVTecAD", MVTEC_CATEGORIES, MVTEC, "good"), *layout("BTech", BTAD_CATEGORIES, BTAD, "ok")):
        files.write(root / path)
    rows = []
    for category in VISA_CATEGORIES:
        for split, label, number in images_of(VISA):
            image = f"{category}/Data/Images/{'Anomaly' if label else 'Normal'}/{split}{number:04}.png"
            mask = f"{category}/Data/Masks/Anomaly/{split}{number:04}.png" if label else ""
            for path in filter(None, (image, mask)):
                files.write(root / "visa" / path)
            rows.append([category, split, "anomaly" if label else "normal", image, mask])
    table = root / "visa/split_csv/1cls.csv"
    table.parent.mkdir()
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["object", "split", "label", "image", "mask"], *rows])
    for category in REAL_IAD_CATEGORIES:
        folder, lists = root / f"Real-IAD/realiad_256/{category}", {"train": [], "test": []}
        for split, label, number in images_of(REAL_IAD):
            name = f"{'NG/BX' if label else 'OK'}/S{number // 5:04}/{category}_{split}_{number:05}_C{number % 5}"
            files.write(folder / f"{name}.jpg")
            entry = {"category": category, "anomaly_class": "BX" if label else "OK", "image_path": f"{name}.jpg"}
            if label:
                entry["mask_path"] = f"{name}.png"
                files.write(folder / f"{name}.png")
            lists[split].append(entry)
        table = root / f"Real-IAD/realiad_jsons/realiad_jsons/{category}.json"
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(json.dumps(lists))
    sizes = (15 * sum(MVTEC), 12 * sum(VISA), 3 * sum(BTAD), 30 * sum(REAL_IAD))
    return sum(sizes)


def layout(dataset: str, categories: tuple[str, ...], numbers: tuple[int, int, int], normal: str) -> Iterator[str]:
    for category in categories:
        for split, label, number in images_of(numbers):
            yield f"{dataset}/{category}/{split}/{'ko' if label else normal}/{number:03}.png"
            if label:
                yield f"{dataset}/{category}/ground_truth/ko/{number:03}_mask.png"


def images_of(numbers: tuple[int, int, int]) -> Iterator[tuple[str, int, int]]:
    for (split, label), n in zip((("train", 0), ("test", 0), ("test", 1)), numbers, strict=True):
        for number in range(n):
            yield split, label, number


def measure() -> dict[str, float]:
    """Set up the data in the current folder in this fresh process."""
    from omegaconf import OmegaConf  # noqa: PLC0415

    datamodule = MultiCategory(**OmegaConf.to_container(OmegaConf.load(CONFIG))["init_args"])
    before, start = peak_mebibytes(), time.perf_counter()
    datamodule.prepare_data()
    datamodule.setup()
    seconds = time.perf_counter() - start
    images = len(datamodule.train_data) + len(datamodule.test_data)
    counts = {"images": images, "categories": len(datamodule.category_names)}
    return {"seconds": seconds, "mebibytes": peak_mebibytes(), "before": before, **counts}


@pytest.mark.benchmark(group="joint setup")
def test_joint_data_are_set_up_in_a_minute_and_a_gibibyte(benchmark, record_ratio, tmp_path):
    made = make(tmp_path / "datasets")

    def run() -> dict[str, float]:
        command = [sys.executable, "-W", "ignore", __file__]
        return json.loads(subprocess.check_output(command, text=True, cwd=tmp_path).splitlines()[-1])

    measured = benchmark.pedantic(run, rounds=1)
    assert measured["categories"] == 60
    assert measured["images"] == made
    assert 150_000 <= made < 151_000
    record_ratio("joint setup, 60 categories, 150,000 images", "seconds", measured["seconds"], 60, "s")
    record_ratio("joint setup, 60 categories, 150,000 images", "mebibytes", measured["mebibytes"], 1024, "MiB")
    record_ratio("joint setup, added to the imports", "mebibytes", measured["mebibytes"], measured["before"], "MiB")
    assert measured["seconds"] < 60
    assert measured["mebibytes"] < 1024


if __name__ == "__main__":
    print(json.dumps(measure()))
