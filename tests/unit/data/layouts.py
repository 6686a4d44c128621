"""Tiny copies of the layouts of anomalib's data sets, and the datamodules on them."""

import json
import warnings
from functools import partial
from pathlib import Path

import miniatures
import pandas as pd
from anomalib import data as anomalib_data
from anomalib.data import AnomalibDataModule
from noise import write_images

from anomalib_ccl.data import MultiCategory

FOLDER_ARGUMENTS = {"normal_dir": "good", "abnormal_dir": "bad", "mask_dir": "masks"}


def write(folders: dict[str, int], root: Path, name: str) -> None:
    """Write so many images, or masks, into each folder of a category."""
    for place, count in folders.items():
        is_mask = any(part in place for part in ("ground_truth", "label", "masks"))
        suffix = {"ground_truth/bad": "_mask.png", "ground_truth/loose": "0.png"}  # MVTec AD, AutoVI
        of_place = next((own for part, own in suffix.items() if part in place), ".png")
        write_images(root / name / place, count, suffix=of_place, mode="L" if is_mask else "RGB")


mvtec = partial(write, {"train/good": 4, "test/good": 2, "test/bad": 3, "ground_truth/bad": 3})
mvtec_ad_2 = partial(
    write,
    {
        **{"train/good": 4, "validation/good": 2, "test_public/good": 2},
        **{"test_public/bad": 3, "test_public/ground_truth/bad": 3},
    },
)
mvtec_loco = partial(
    write,
    {
        **{"train/good": 4, "validation/good": 2, "test/good": 2, "test/logical_anomalies": 2},
        **{f"ground_truth/logical_anomalies/{image}": 2 for image in ("000", "001")},
    },
)
btech = partial(write, {"train/ok": 4, "test/ok": 2, "test/ko": 3, "ground_truth/ko": 3})
auto_vi = partial(
    write,
    {
        **{"train/good": 4, "test/good": 2, "test/loose": 2},
        **{f"ground_truth/loose/{image}": 1 for image in ("000", "001")},
    },
)
bmad = partial(
    write,
    {
        "train/good": 4,
        **{f"{split}/good/img": 2 for split in ("valid", "test")},
        **{f"{split}/Ungood/{kind}": 3 for split in ("valid", "test") for kind in ("img", "label")},
    },
)
folder = partial(write, {"good": 6, "bad": 4, "masks": 4})


def visa(root: Path, name: str) -> None:
    mvtec(root / "visa_pytorch", name)


def real_iad(root: Path, name: str) -> None:
    write({"OK": 6, "NG": 3, "masks": 3}, root / "realiad_256", name)
    good = [{"image_path": f"OK/{i:03}.png", "anomaly_class": "OK"} for i in range(6)]
    bad = [{"image_path": f"NG/{i:03}.png", "mask_path": f"masks/{i:03}.png", "anomaly_class": "AK"} for i in range(3)]
    table = root / "realiad_jsons" / "realiad_jsons" / f"{name}.json"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(json.dumps({"train": good[:4], "test": good[4:] + bad}))


def manta(root: Path, name: str) -> None:
    miniatures.manta(root, [name])


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
