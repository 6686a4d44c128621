"""The table of docs/results.md: models × seeds on the products of a folder in MVTec AD's layout.

    python examples/benchmark.py ./datasets/realad --models plain paper recommended memory patchcore --seeds 0 1 2
    python examples/benchmark.py ./datasets/realad --table          # of what is there so far

Each job is a process of its own. It writes its figures to OUTPUT when it ends; where they are, it is not run again.
A trained CCL is tested a second time with the same weights and a memory, or without its own. A model whose name ends
in ``-each`` is one model for each product. ``--half A=bottle,casting`` adds the means of these products alone, so that
what was chosen on some products can be reported on the others.

False alarms and missed defects are those at a limit for 1 % that is set from normal training images alone: CCL's own;
for anomalib's models, which have none, by the same estimator from a fifth of the normal images, held out of training.
*Minutes* are those of one processor core that the training took, *milliseconds* those of an image in OpenVINO, and
*megabytes* is the size of that file; both in single precision.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

PLAIN = {"projection": "none", "noise_probability": 0.0, "local_weight": 0.0, "global_weight": 0.0}
NO_LOSSES = {"local_weight": 0.0, "global_weight": 0.0}
# Arguments of CCL; anomalib's own models by their names.
MODELS: dict[str, dict[str, Any]] = {
    "plain": {"research": PLAIN},
    "paper": {},
    "paper-no-losses": {"research": NO_LOSSES},
    "recommended": {"recipe": "recommended"},
    "recommended-no-losses": {"recipe": "recommended", "research": NO_LOSSES},
    "recommended-two-views": {"recipe": "recommended", "research": {"losses": "paper"}},
    "memory": {"recipe": "memory"},
    "patchcore": {},
    "padim": {},
}
# Rows of the same weights with another number of remembered vectors, which come with those of the model.
VARIANTS = {
    "plain": {"plain-memory": 500},
    "paper": {"paper-memory": 500},
    "paper-no-losses": {"paper-no-losses-memory": 500},
    "recommended": {"recommended-no-memory": 0},
    "recommended-no-losses": {"recommended-no-losses-no-memory": 0},
}
ROWS = [row for model in MODELS for row in (model, *VARIANTS.get(model, {}))]
FIGURES = ["image_AUROC", "pixel_AUROC", "pixel_AUPRO", "false_alarms", "missed"]


def train_and_test(name: str, root: Path, category: str | None, seed: int, arguments: argparse.Namespace) -> None:
    """Train and test one model, in this process, and write its figures."""
    from anomalib.engine import Engine  # noqa: PLC0415  # heavy, and not for the table
    from lightning import seed_everything  # noqa: PLC0415

    from anomalib_ccl import CCL, MultiCategory  # noqa: PLC0415

    seed_everything(seed, workers=True)
    folder = arguments.output / f"{job_name(name, category, seed)}.run"
    size, foreign = (arguments.image_size, arguments.image_size), name in ("patchcore", "padim")
    splits = {"val_split_mode": "from_train", "val_split_ratio": 0.2} if foreign else {"val_split_mode": "none"}
    data = MultiCategory(
        "MVTecAD", root, [category] if category else None, num_workers=0, train_batch_size=16, seed=seed, **splits
    )
    if foreign:
        model = foreign_model(name, arguments.backbone, size)
    else:
        cache = tempfile.gettempdir() if MODELS[name].get("recipe") != "memory" else None
        model = CCL(arguments.backbone, image_size=size, visualizer=False, feature_cache=cache, **MODELS[name])
    engine = Engine(
        max_epochs=arguments.epochs, accelerator="auto", devices=1, default_root_dir=folder, enable_progress_bar=False
    )
    start = time.process_time()  # of all threads: the same whatever else the machine does
    engine.fit(model, datamodule=data)
    minutes = (time.process_time() - start) / 60

    def figures_of_test() -> pd.DataFrame:
        engine.test(model, datamodule=data, verbose=False)
        figures = pd.read_csv(Path(engine.trainer.default_root_dir) / "categories.csv").query("category != 'mean'")
        return figures.assign(minutes=minutes, **cost_of(model, size))

    figures = figures_of_test()
    if foreign:
        add_verdicts(figures, engine, model, data)
    for variant, memory in VARIANTS.get(name, {}).items():
        calibrate_anew(model, data, memory)
        figures_of_test().to_csv(arguments.output / f"{job_name(variant, category, seed)}.csv", index=False)
    figures.to_csv(arguments.output / f"{job_name(name, category, seed)}.csv", index=False)


def foreign_model(name: str, backbone: str, size: tuple[int, int]) -> Any:
    """Make one of anomalib's models, with the weights, size and normalisation of CCL's teacher."""
    from anomalib.models import Padim, Patchcore  # noqa: PLC0415

    from anomalib_ccl import CCL  # noqa: PLC0415

    teacher = CCL(backbone, image_size=size).model.network.teacher
    pre_processor = CCL.configure_pre_processor(size, backbone)
    made = {"backbone": backbone, "pre_trained": False, "pre_processor": pre_processor, "visualizer": False}
    if name == "patchcore":
        model = Patchcore(**made, layers=teacher.layers[1:], coreset_sampling_ratio=0.01)
    else:
        model = Padim(**made, layers=teacher.layers, n_features=100)
    model.model.feature_extractor.load_state_dict(teacher.state_dict(), strict=False)
    return model


def add_verdicts(figures: pd.DataFrame, engine: Any, model: Any, data: Any) -> None:
    """Add false alarms and missed defects of a model without limits, by CCL's estimator from held-out images."""
    import torch  # noqa: PLC0415

    from anomalib_ccl.model.limits import limits_at, tail_quantiles  # noqa: PLC0415

    predictions = pd.read_csv(Path(engine.trainer.default_root_dir) / "predictions.csv")
    held_out = engine.predict(model, data.val_dataloader())
    scores = torch.cat([batch.pred_score.flatten().cpu() for batch in held_out])
    products = sorted(data.val_data.samples["category"].unique())
    labels = torch.tensor([products.index(category) for category in data.val_data.samples["category"]])
    limits = dict(zip(products, limits_at(tail_quantiles(scores, labels), 0.01).tolist(), strict=False))
    above = predictions["score"] > predictions["category"].map(limits)
    for kind, figure in ((False, "false_alarms"), (True, "missed")):
        chosen = predictions["defective"] == kind
        share = (above != kind)[chosen].groupby(predictions["category"][chosen]).mean()
        figures[figure] = figures["category"].map(share)


def cost_of(model: Any, size: tuple[int, int]) -> dict[str, float]:
    """Export a model to OpenVINO and measure its file, and what an image takes of one processor core."""
    import openvino  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        file = model.to_openvino(folder, input_size=size)
        settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        infer = openvino.Core().compile_model(file, "CPU", settings)
        image = np.random.default_rng(0).random((1, 3, *size), np.float32)
        seconds = []
        for _ in range(50):
            start = time.process_time()
            infer(image)
            seconds.append(time.process_time() - start)
        megabytes = sum(part.stat().st_size for part in file.parent.iterdir()) / 1e6
    return {"milliseconds": 1000 * float(np.median(seconds)), "megabytes": megabytes}


def calibrate_anew(model: Any, data: Any, memory: int) -> None:
    """Calibrate a trained model with another number of remembered vectors."""
    from anomalib_ccl.data.passes import Passes  # noqa: PLC0415
    from anomalib_ccl.model.memory import ClassMemory  # noqa: PLC0415
    from anomalib_ccl.training.calibrate import calibrate  # noqa: PLC0415

    model.model.memory = ClassMemory(memory).to(model.device)
    images = Passes(data.train_dataloader(), model.pre_processor, model.device, shows_progress=False)
    calibrate(model.model.eval(), images.labelled(model.classes.labels))


def job_name(name: str, category: str | None, seed: int) -> str:
    """Name a job's files."""
    return "-".join([name, *([category] if category else []), f"seed{seed}"])


def table(output: Path, halves: dict[str, list[str]]) -> pd.DataFrame:
    """Make the table of all figures there are: means over all products, and over seeds."""
    rows = []
    for name in [x for row in ROWS for x in (row, f"{row}-each")]:
        base, each = name.removesuffix("-each"), name.endswith("-each")
        files = sorted(output.glob(f"{base}-*seed*.csv"))
        files = [f for f in files if f.stem.removeprefix(f"{base}-").startswith("seed") != each]
        files = [
            f for f in files if not any(f.stem.startswith(f"{other}-") for other in ROWS if len(other) > len(base))
        ]
        if not files:
            continue
        found = pd.concat([pd.read_csv(f).assign(seed=f.stem.rpartition("seed")[2]) for f in files])
        row: dict[str, object] = {
            "model": name,
            "seeds": found["seed"].nunique(),
            "products": found["category"].nunique(),
        }
        by_seed = found.groupby("seed")
        for figure in FIGURES:
            means = 100 * by_seed[figure].mean()
            row[figure] = f"{means.mean():.1f}" + (f" ± {means.std():.1f}" if len(means) > 1 else "")
        for half, products in halves.items():
            own = found[found["category"].isin(products)].groupby("seed")[FIGURES[:3]].mean().mean()
            row[f"half {half}"] = " / ".join(f"{100 * value:.1f}" for value in own)
        totals = by_seed[["minutes", "megabytes"]]
        row |= dict((totals.sum() if each else totals.first()).mean().round(1))
        row["milliseconds"] = round(found["milliseconds"].mean(), 1)
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    """Run the jobs that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of the products")
    names = [x for model in MODELS for x in (model, f"{model}-each")]
    parser.add_argument("--models", nargs="*", default=[], choices=names, metavar="MODEL", help=", ".join(names))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--image_size", type=int, default=160)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--output", type=Path, default=Path("runs/table"))
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side")
    parser.add_argument("--half", nargs="*", default=[], metavar="NAME=PRODUCT,…")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and run nothing")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        train_and_test(*arguments.job[:1], arguments.root, *arguments.job[1:], arguments)
        return
    if not any(arguments.root.glob("*/train")):
        parser.error(f"{arguments.root} has no products in MVTec AD's layout, with a folder train in each")
    arguments.output.mkdir(parents=True, exist_ok=True)
    jobs: list[tuple[str, str | None, int]] = []
    for seed in [] if arguments.table else arguments.seeds:
        for name in arguments.models:
            products = sorted(path.parent.name for path in arguments.root.glob("*/train"))
            jobs += [(name.removesuffix("-each"), p, seed) for p in (products if name.endswith("-each") else [None])]
    missing = [job for job in jobs if not (arguments.output / f"{job_name(*job)}.csv").exists()]

    def run(job: tuple[str, str | None, int]) -> bool:
        log = arguments.output / f"{job_name(*job)}.log"
        with log.open("w") as file:
            code = subprocess.run(
                [*sys.orig_argv, "--job", json.dumps(job)], stdout=file, stderr=file, check=False
            ).returncode
        print(f"{job_name(*job)}: {'done' if code == 0 else f'failed, see {log}'}", flush=True)
        return code == 0

    with ThreadPoolExecutor(arguments.jobs) as pool:
        succeeded = all(list(pool.map(run, missing)))
    halves = {name: products.split(",") for name, _, products in (text.partition("=") for text in arguments.half)}
    found = table(arguments.output, halves)
    if found.empty:
        sys.exit(f"There are no figures in {arguments.output} yet.")
    found.replace(np.nan, "").to_csv(arguments.output / "table.csv", index=False)
    print(found.to_string(index=False))
    sys.exit(not succeeded)


if __name__ == "__main__":
    main()
