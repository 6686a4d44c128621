"""What a product costs that is only added: each product is left out of a training and then added to its model.

    python examples/left_out.py ./datasets/realad --recipe memory
    python examples/left_out.py ./datasets/realad --recipe recommended --together 4      # four products at a time

Prints image AUROC, pixel AUROC, false alarms and missed of each product in a model that has known it all along, and in
one that it was added to by ``anomalib-ccl recalibrate --add``; last, the means. ``unknown`` is the share of its test
images that are called unknown, in the second case before it is added. Figures that are there are kept.
"""

import argparse
from pathlib import Path

import pandas as pd
from anomalib.engine import Engine
from lightning import seed_everything

from anomalib_ccl import CCL, MultiCategory
from anomalib_ccl.recalibrate import recalibrate

FIGURES = ["image_AUROC", "pixel_AUROC", "false_alarms", "missed", "unknown"]


def figures_without(left_out: list[str], products: list[str], arguments: argparse.Namespace) -> pd.DataFrame:
    """Train a model without some products, add them, and test it on all."""
    file = arguments.output / f"{arguments.recipe}-{'-'.join(left_out) or 'all'}.csv"
    if file.exists():
        return pd.read_csv(file, index_col="category")
    seed_everything(0, workers=True)
    folder = file.with_suffix(".run")
    size = (arguments.image_size, arguments.image_size)

    def data(categories: list[str]) -> MultiCategory:
        return MultiCategory("MVTecAD", arguments.root, categories, num_workers=0, val_split_mode="none")

    model = CCL(arguments.backbone, size, arguments.recipe, visualizer=False)
    engine = Engine(max_epochs=arguments.epochs, default_root_dir=folder, enable_progress_bar=False)
    engine.fit(model, data([name for name in products if name not in left_out]))
    path = folder / "model.ckpt"
    engine.trainer.save_checkpoint(path)

    def tested(categories: list[str]) -> pd.DataFrame:
        tester = Engine(default_root_dir=folder, enable_progress_bar=False)
        tester.test(CCL.load_from_checkpoint(path, visualizer=False), data(categories), verbose=False)
        results = Path(tester.trainer.default_root_dir)
        rows = pd.read_csv(results / "predictions.csv")
        unknown = (rows["product"] == "unknown").groupby(rows["category"]).mean()
        return pd.read_csv(results / "categories.csv", index_col="category").assign(unknown=unknown)

    if left_out:
        unknown = tested(left_out)["unknown"]
        path = recalibrate(path, data(left_out), add=True, output=folder / "added.ckpt").path
    found = tested(products)
    if left_out:
        found.loc[left_out, "unknown"] = unknown[left_out]
    found.to_csv(file)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of the products, in MVTec AD's layout")
    parser.add_argument("--recipe", default="memory")
    parser.add_argument("--together", type=int, default=1, help="products that are left out of one training")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--image_size", type=int, default=160)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--output", type=Path, default=Path("runs/left_out"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    products = sorted(path.parent.name for path in arguments.root.glob("*/train"))
    known = figures_without([], products, arguments)
    added, others = [], []
    for start in range(0, len(products), arguments.together):
        left_out = products[start : start + arguments.together]
        found = figures_without(left_out, products, arguments)
        added.append(found.loc[left_out])
        others.append(found.drop([*left_out, "mean"]))
        print(100 * found.loc[left_out, FIGURES], flush=True)
    table = pd.concat({"known": known.loc[products, FIGURES], "added": pd.concat(added)[FIGURES]}, axis=1)
    table.loc["mean"] = table.mean()
    print((100 * table).round(1).to_string(na_rep=""))
    print("Products that were known, beside the added ones:")
    print((100 * pd.concat(others)[FIGURES].groupby("category").mean().mean()).round(1).to_string())


if __name__ == "__main__":
    main()
