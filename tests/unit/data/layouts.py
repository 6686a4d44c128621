"""Tiny copies of the layouts of anomalib's data sets, and the datamodules on them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import miniatures
import pandas as pd
from anomalib import data as anomalib_data
from anomalib.data import AnomalibDataModule
from conftest import write_images

from anomalib_ccl.data import MultiCategory

FOLDER_ARGUMENTS = {"normal_dir": "good", "abnormal_dir": "bad", "mask_dir": "masks"}


def mvtec(root: Path, name: str) -> None:
    write_images(root / name / "train" / "good", 4)
    write_images(root / name / "test" / "good", 2)
    write_images(root / name / "test" / "bad", 3)
    write_images(root / name / "ground_truth" / "bad", 3, suffix="_mask.png", mode="L")


def mvtec_ad_2(root: Path, name: str) -> None:
    write_images(root / name / "train" / "good", 4)
    write_images(root / name / "validation" / "good", 2)
    write_images(root / name / "test_public" / "good", 2)
    write_images(root / name / "test_public" / "bad", 3)
    write_images(root / name / "test_public" / "ground_truth" / "bad", 3, suffix="_mask.png", mode="L")


def mvtec_loco(root: Path, name: str) -> None:
    write_images(root / name / "train" / "good", 4)
    write_images(root / name / "validation" / "good", 2)
    write_images(root / name / "test" / "good", 2)
    write_images(root / name / "test" / "logical_anomalies", 2)
    for image in ("000", "001"):
        write_images(root / name / "ground_truth" / "logical_anomalies" / image, 2, mode="L")


def visa(root: Path, name: str) -> None:
    mvtec(root / "visa_pytorch", name)


def btech(root: Path, name: str) -> None:
    write_images(root / name / "train" / "ok", 4)
    write_images(root / name / "test" / "ok", 2)
    write_images(root / name / "test" / "ko", 3)
    write_images(root / name / "ground_truth" / "ko", 3, mode="L")


def auto_vi(root: Path, name: str) -> None:
    write_images(root / name / "train" / "good", 4)
    write_images(root / name / "test" / "good", 2)
    write_images(root / name / "test" / "loose", 2)
    for image in ("000", "001"):
        write_images(root / name / "ground_truth" / "loose" / image, 1, mode="L")
        (root / name / "ground_truth" / "loose" / image / "000.png").rename(
            root / name / "ground_truth" / "loose" / image / "0000.png"
        )


def bmad(root: Path, name: str) -> None:
    write_images(root / name / "train" / "good", 4)
    for split in ("valid", "test"):
        write_images(root / name / split / "good" / "img", 2)
        write_images(root / name / split / "Ungood" / "img", 3)
        write_images(root / name / split / "Ungood" / "label", 3, mode="L")


def real_iad(root: Path, name: str) -> None:
    folder = root / "realiad_256" / name
    write_images(folder / "OK", 6)
    write_images(folder / "NG", 3)
    write_images(folder / "masks", 3, mode="L")
    good = [{"image_path": f"OK/{i:03}.png", "anomaly_class": "OK"} for i in range(6)]
    bad = [{"image_path": f"NG/{i:03}.png", "mask_path": f"masks/{i:03}.png", "anomaly_class": "AK"} for i in range(3)]
    table = root / "realiad_jsons" / "realiad_jsons" / f"{name}.json"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(json.dumps({"train": good[:4], "test": good[4:] + bad}))


def manta(root: Path, name: str) -> None:
    miniatures.manta(root, [name])


def folder(root: Path, name: str) -> None:
    write_images(root / name / "good", 6)
    write_images(root / name / "bad", 4)
    write_images(root / name / "masks", 4, mode="L")


LAYOUTS = {
    "MVTecAD": (mvtec, ["bottle", "cable"]),
    "MVTecAD2": (mvtec_ad_2, ["can", "vial"]),
    "MVTecLOCO": (mvtec_loco, ["juice_bottle", "pushpins"]),
    "Visa": (visa, ["candle", "pcb1"]),
    "BTech": (btech, ["01", "02"]),
    "MPDD": (mvtec, ["bracket_black", "tubes"]),
    "VAD": (mvtec, ["vad"]),
    "RealIAD": (real_iad, ["audiojack", "pcb"]),
    "AutoVI": (auto_vi, ["pipe_clip", "tank_screw"]),
    "BMAD": (bmad, ["Brain", "Chest"]),
    "MANTA": (manta, ["maize", "nut"]),
    "Folder": (folder, ["left door", "right door"]),
}


def make_tree(dataset: str, root: Path) -> list[str]:
    """Make the data set's layout under ``root``; the names of its categories."""
    make, names = LAYOUTS[dataset]
    for name in names:
        make(root, name)
    return names


def own_datamodule(dataset: str, root: Path, name: str) -> AnomalibDataModule:
    """anomalib's datamodule of one category, set up."""
    datamodule_class = getattr(anomalib_data, dataset)
    if dataset == "Folder":
        own = datamodule_class(name=name, root=root / name, seed=7, num_workers=0, **FOLDER_ARGUMENTS)
    else:
        own = datamodule_class(root=root, category=name, seed=7, num_workers=0)
    own.prepare_data()
    # MVTecAD2, MVTecLOCO and AutoVI of anomalib 2.7 fail with the string type of pandas 3.
    with warnings.catch_warnings(), pd.option_context("future.infer_string", False):
        own.setup()
    return own


def joined(dataset: str, root: Path, **arguments: object) -> MultiCategory:
    """MultiCategory over one data set, set up."""
    if dataset == "Folder":
        arguments.setdefault("dataset_args", FOLDER_ARGUMENTS)
    datamodule = MultiCategory(dataset, root, num_workers=0, seed=7, **arguments)
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def images(loader, category: str | None = None) -> list[str]:
    samples = loader.dataset.samples
    return sorted(samples[samples.category == category].image_path if category else samples.image_path)
