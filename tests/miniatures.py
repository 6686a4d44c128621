"""Miniatures of the data sets of the paper: all categories, real folders and tables, a handful of small images."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path

import numpy as np
from anomalib.data.datamodules.image.visa import VISA_CATEGORIES
from anomalib.data.datasets.image.btech import CATEGORIES as BTAD_CATEGORIES
from anomalib.data.datasets.image.mvtecad import CATEGORIES as MVTEC_CATEGORIES
from anomalib.data.datasets.image.realiad import CATEGORIES as REAL_IAD_CATEGORIES
from PIL import Image

Names = Collection[str]

#: The categories of each domain of MANTA.
DOMAINS = {
    "electronics": (
        *("block_inductor", "copper_standoff", "flat_nut", "led", "led_pad", "long_button"),
        *("power_inductor", "short_button", "thin_resistor", "type_c", "wafer_resistor"),
    ),
    "mechanics": (
        *("button", "gear", "nut", "nut_cap", "red_washer", "round_button_cap", "screw"),
        *("square_button_cap", "terminal", "wire_cap", "yellow_green_washer"),
    ),
    "grain": ("maize", "paddy", "soybean", "wheat"),
    "groceries": ("coffee_beans", "goji_berries", "pistachios"),
    "medicine": (
        *("capsule", "coated_tablet", "embossed_tablet", "lettered_tablet", "oblong_tablet"),
        *("pink_tablet", "red_tablet", "white_tablet", "yellow_tablet"),
    ),
}
CATEGORIES = tuple(sorted(category for categories in DOMAINS.values() for category in categories))

#: Images of each category: training, normal test, defective test.
TRAIN, GOOD, BAD = 2, 1, 1


@cache
def picture(suffix: str, mode: str = "RGB", width: int = 32, seed: int = 0) -> bytes:
    """An image file of 32 pixels height: noise, or, of mode ``L``, a mask whose right quarter is white."""
    if mode == "L":
        pixels = np.zeros((32, width), np.uint8)
        pixels[:, -8:] = 255
    else:
        pixels = np.random.default_rng(seed).integers(0, 256, (32, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG" if suffix.lower() == ".jpg" else "PNG" if suffix == ".png" else "BMP")
    return file.getvalue()


def write(path: Path, mode: str = "RGB", width: int = 32, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(path.suffix, mode, width, seed))


def mvtec(root: Path, categories: Names = MVTEC_CATEGORIES) -> None:
    for category in categories:
        for number in range(TRAIN):
            write(root / category / "train/good" / f"{number:03}.png", seed=number)
        write(root / category / "test/good/000.png")
        write(root / category / "test/broken/000.png")
        write(root / category / "ground_truth/broken/000_mask.png", "L")


def visa(root: Path, categories: Names = VISA_CATEGORIES) -> None:
    """As it is downloaded."""
    rows = [["object", "split", "label", "image", "mask"]]
    for category in categories:
        data = f"{category}/Data"
        for number in range(TRAIN + GOOD):
            image = f"{data}/Images/Normal/{number:04}.JPG"
            write(root / image, seed=number)
            rows.append([category, "train" if number < TRAIN else "test", "normal", image, ""])
        image, mask = f"{data}/Images/Anomaly/000.JPG", f"{data}/Masks/Anomaly/000.png"
        write(root / image)
        write(root / mask, "L")
        rows.append([category, "test", "anomaly", image, mask])
    table = root / "split_csv/1cls.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def btad(root: Path, categories: Names = BTAD_CATEGORIES) -> None:
    """Its masks have other suffixes than its images in two of three products."""
    for category in categories:
        suffix = ".png" if category == "02" else ".bmp"
        for number in range(TRAIN):
            write(root / category / "train/ok" / f"{number:04}{suffix}", seed=number)
        write(root / category / f"test/ok/0000{suffix}")
        write(root / category / f"test/ko/0000{suffix}")
        write(root / category / "ground_truth/ko/0000.png", "L")


def real_iad(root: Path, categories: Names = REAL_IAD_CATEGORIES, resolution: int = 256) -> None:
    """Five cameras see each object; its defect is not on the image of each of them."""
    for category in categories:
        folder = root / f"realiad_{resolution}" / category
        table: dict[str, list[dict[str, str | None]]] = {"train": [], "test": []}
        for sample, split in enumerate(["train"] * TRAIN + ["test"], start=1):
            image = f"OK/S{sample:04}/{category}_{sample:04}_OK_C1_20231021.jpg"
            write(folder / image, seed=sample)
            table[split].append({"category": category, "anomaly_class": "OK", "image_path": image, "mask_path": None})
        stem = f"NG/BX/S0001/{category}_0001_NG_BX_C1_20231021"
        write(folder / f"{stem}.jpg")
        write(folder / f"{stem}.png", "L")
        paths = {"image_path": f"{stem}.jpg", "mask_path": f"{stem}.png"}
        table["test"].append({"category": category, "anomaly_class": "BX", **paths})
        file = root / "realiad_jsons/realiad_jsons" / f"{category}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        meta = {"normal_class": "OK", "prefix": f"{category}/"}
        file.write_text(json.dumps({"meta": meta, **table}), encoding="utf-8")


def manta(root: Path, categories: Names = CATEGORIES) -> None:
    """The defect is on the last of five views. Paths have two slashes where the authors' program writes two."""
    for domain, of_domain in DOMAINS.items():
        if not (here := [category for category in of_domain if category in categories]):
            continue
        table: dict[str, dict[str, list[dict[str, str | int]]]] = {"train": {}, "test-pixel": {}}
        for category in here:

            def entry(split: str, label: str, name: str, category: str = category) -> dict[str, str | int]:
                return {
                    "img_path": f"{category}/{split}/{label}//{name}",
                    "mask_path": "" if label == "good" else f"{category}/{split}/mask/{name}",
                    "cls_name": category,
                    "specie_name": label,
                    "anomaly": int(label != "good"),
                }

            table["train"][category] = [entry("train", "good", f"{number:04}.png") for number in range(TRAIN)]
            table["test-pixel"][category] = [entry("test-pixel", label, "0000.png") for label in ("good", "bad")]
            for number in range(TRAIN):
                write(root / domain / category / "train/good" / f"{number:04}.png", width=160, seed=number)
            write(root / domain / category / "test-pixel/good/0000.png", width=160)
            write(root / domain / category / "test-pixel/bad/0000.png", width=160)
            write(root / domain / category / "test-pixel/mask/0000.png", "L", width=160)
        (root / domain / "meta.json").write_text(json.dumps(table), encoding="utf-8")


def products(root: Path) -> None:
    """The folders of ``configs/data/folders.yaml``."""
    for category in ("bolt", "nut"):
        for number in range(TRAIN):
            write(root / category / "good" / f"{number:03}.png", seed=number)
        write(root / category / "bad/000.png")


def both_real_iads(root: Path) -> None:
    """The two editions that there are configs for."""
    for resolution in (256, 512):
        real_iad(root, resolution=resolution)


#: What makes the data set of each folder in ``datasets``.
MINIATURES: dict[str, Callable[[Path], None]] = {
    "MVTecAD": mvtec,
    "visa": visa,
    "BTech": btad,
    "Real-IAD": both_real_iads,
    "MANTA": manta,
    "products": products,
}
