"""The table of docs/results.md: models × seeds on the products of a folder in MVTec AD's layout.

    python examples/benchmark.py ./datasets/realad --models plain paper recommended memory patchcore --seeds 0 1 2
    python examples/benchmark.py ./datasets/realad --table          # of what is there so far

Each job is a process of its own. It writes its figures to OUTPUT when it ends; where they are, it is not run again.
A model whose name ends in ``-each`` is one model for each product. ``--half A=bottle,casting`` adds the means of these
products alone, so that what was chosen on some products can be reported on the others.

False alarms and missed defects are those at a limit for 1 % that is set from normal training images alone: CCL's own;
for anomalib's models, which have none, by the same estimator from a fifth of the normal images, held out of training.
"""

import argparse
import json
import subprocess
import sys
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
    "paper-memory": {"memory": 500},
    "recommended": {"recipe": "recommended"},
    "recommended-no-memory": {"recipe": "recommended", "memory": 0},
    "recommended-no-losses": {"recipe": "recommended", "research": NO_LOSSES},
    "memory": {"recipe": "memory"},
    "patchcore": {},
    "padim": {},
}
FIGURES = ["image_AUROC", "pixel_AUROC", "pixel_AUPRO", "false_alarms", "missed"]


def train_and_test(name: str, root: Path, category: str | None, seed: int, arguments: argparse.Namespace) -> None:
    """Train and test one model, in this process, and write its figures."""
    import torch  # noqa: PLC0415  # heavy, and not for the table
    from anomalib.engine import Engine  # noqa: PLC0415
    from anomalib.models import Padim, Patchcore  # noqa: PLC0415
    from lightning import seed_everything  # noqa: PLC0415

    from anomalib_ccl import CCL, MultiCategory  # noqa: PLC0415
    from anomalib_ccl.model.limits import limits_at, tail_quantiles  # noqa: PLC0415

    seed_everything(seed, workers=True)
    folder = arguments.output / f"{job_name(name, category, seed)}.run"
    size = (arguments.image_size, arguments.image_size)
    backbone, foreign = arguments.backbone, name in ("patchcore", "padim")
    splits = {"val_split_mode": "from_train", "val_split_ratio": 0.2} if foreign else {"val_split_mode": "none"}
    data = MultiCategory(
        "MVTecAD", root, [category] if category else None, num_workers=0, train_batch_size=16, seed=seed, **splits
    )
    if foreign:
        # The weights, size and normalisation of CCL's teacher.
        teacher = CCL(backbone, image_size=size)
        layers = teacher.model.network.teacher.feature_extractor.feature_info.module_name()
        pre_processor = CCL.configure_pre_processor(size, backbone)
        made = {"backbone": backbone, "pre_trained": False, "layers": layers, "pre_processor": pre_processor}
        model = Patchcore(**made, coreset_sampling_ratio=0.01) if name == "patchcore" else Padim(**made, n_features=100)
        weights = teacher.model.network.teacher.state_dict()
        model.model.feature_extractor.load_state_dict(weights, strict=False)
        model.visualizer = None
    else:
        model = CCL(backbone, image_size=size, visualizer=False, **MODELS[name])
    engine = Engine(
        max_epochs=arguments.epochs, accelerator="auto", devices=1, default_root_dir=folder, enable_progress_bar=False
    )
    start = time.monotonic()
    engine.fit(model, datamodule=data)
    minutes = (time.monotonic() - start) / 60
    engine.test(model, datamodule=data, verbose=False)
    results = Path(engine.trainer.default_root_dir)
    figures = pd.read_csv(results / "categories.csv").query("category != 'mean'")
    if foreign:
        held_out = engine.predict(model, data.val_dataloader())
        scores = torch.cat([batch.pred_score.flatten().cpu() for batch in held_out])
        products = sorted(data.val_data.samples["category"].unique())
        labels = torch.tensor([products.index(category) for category in data.val_data.samples["category"]])
        limits = dict(zip(products, limits_at(tail_quantiles(scores, labels), 0.01).tolist(), strict=False))
        predictions = pd.read_csv(results / "predictions.csv")
        above = predictions["score"] > predictions["category"].map(limits)
        for kind, figure in ((False, "false_alarms"), (True, "missed")):
            chosen = predictions["defective"] == kind
            share = (above != kind)[chosen].groupby(predictions["category"][chosen]).mean()
            figures[figure] = figures["category"].map(share)
    file = engine.trainer.checkpoint_callback.best_model_path
    engine.trainer.save_checkpoint(file := file or results / "model.ckpt", weights_only=True)
    figures = figures.assign(minutes=minutes, megabytes=Path(file).stat().st_size / 1e6)
    figures.to_csv(arguments.output / f"{job_name(name, category, seed)}.csv", index=False)


def job_name(name: str, category: str | None, seed: int) -> str:
    """Name a job's files."""
    return "-".join([name, *([category] if category else []), f"seed{seed}"])


def table(output: Path, halves: dict[str, list[str]]) -> pd.DataFrame:
    """Make the table of all figures there are: means over all products, and over seeds."""
    rows = []
    for name in [x for model in MODELS for x in (model, f"{model}-each")]:
        base, each = name.removesuffix("-each"), name.endswith("-each")
        files = sorted(output.glob(f"{base}-*seed*.csv"))
        files = [f for f in files if f.stem.removeprefix(f"{base}-").startswith("seed") != each]
        files = [
            f for f in files if not any(f.stem.startswith(f"{other}-") for other in MODELS if len(other) > len(base))
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
    arguments.output.mkdir(parents=True, exist_ok=True)
    jobs: list[tuple[str, str | None, int]] = []
    for seed in [] if arguments.table else arguments.seeds:
        for name in arguments.models:
            products = sorted(path.parent.name for path in arguments.root.glob("*/train"))
            jobs += [(name.removesuffix("-each"), p, seed) for p in (products if name.endswith("-each") else [None])]
    missing = [job for job in jobs if not (arguments.output / f"{job_name(*job)}.csv").exists()]

    def run(job: tuple[str, str | None, int]) -> None:
        log = arguments.output / f"{job_name(*job)}.log"
        with log.open("w") as file:
            code = subprocess.run(
                [*sys.orig_argv, "--job", json.dumps(job)], stdout=file, stderr=file, check=False
            ).returncode
        print(f"{job_name(*job)}: {'done' if code == 0 else f'failed, see {log}'}", flush=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(run, missing))
    halves = {name: products.split(",") for name, _, products in (text.partition("=") for text in arguments.half)}
    found = table(arguments.output, halves)
    found.replace(np.nan, "").to_csv(arguments.output / "table.csv", index=False)
    print(found.to_string(index=False))


if __name__ == "__main__":
    main()
