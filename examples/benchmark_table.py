"""Make one table of what `anomalib benchmark` measured, in as many runs as there were, on data sets of many categories.

    python examples/benchmark_table.py runs/benchmark --apart screw ballscrew --csv table.csv

A row is a model and its options; where they name the categories, the models of one category each make one row together.
Figures in percent: mean over the categories ± standard deviation over seeds and, for image AUROC, the interval in which
95 % of the means lie that other test images of the same kind would give (1,000 bootstrap samples); the CSV file has the
same of each category. For CCL, whose scores are in limits of the product, also the images above the limit, normal ones
(false alarms) and defective ones (found); the limit is that of the model's `false_alarm_rate`. Of runs that were
repeated the last counts, and a run that lacks categories which other seeds of its row have is named and left out.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata

FIGURES = ["image_AUROC", "pixel_AUROC", "pixel_AUPRO"]
CATEGORIES = "data.init_args.categories"
CACHE = "model.init_args.feature_cache"  # changes no figure
SAMPLES = 1000


def read(folder: Path, content: str) -> pd.DataFrame:
    """Join the files of all benchmarks in a folder."""
    files = sorted(folder.rglob(f"*-{content}.csv"))
    if not files:
        raise SystemExit(f"no *-{content}.csv in {folder}; `anomalib benchmark` writes them to runs/benchmark")
    return pd.concat([pd.read_csv(path).assign(file=str(path)) for path in files], ignore_index=True)


def name_rows(frame: pd.DataFrame) -> pd.Series:
    """Name each row by its model and those options in which the rows differ."""
    options = [key for key in frame if key.startswith("model.init_args") and key != CACHE]
    options = [key for key in options if frame[key].astype(str).nunique() > 1]
    texts = (
        frame[options]
        .astype(str)
        .apply(lambda row: ", ".join(f"{k.split('.')[-1]} {v}" for k, v in row.items()), axis=1)
    )
    alone = frame[CATEGORIES].notna() if CATEGORIES in frame else pd.Series(False, frame.index)
    return frame["model"] + ": " + texts + np.where(alone, ", one model each", "")


def whole_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """Keep the last file of each row, seed and category, and the seeds that have all of their row's categories."""
    # The names of the files, not of their folders, begin with the time.
    frame = frame.assign(name=frame["file"].map(lambda path: Path(path).name))
    frame = frame[frame["name"] == frame.groupby(["row", "seed", "category"])["name"].transform("max")]
    own = frame.groupby(["row", "seed"])["category"].transform("nunique")
    whole = frame.groupby("row")["category"].transform("nunique")
    for (row, seed), run in frame[own < whole].groupby(["row", "seed"]):
        print(f"left out: seed {seed} of {row}, which lacks categories ({run['category'].nunique()})", file=sys.stderr)
    return frame[own == whole]


def bootstrap(images: pd.DataFrame, generator: np.random.Generator) -> np.ndarray:
    """Image AUROC of samples of the normal and of the defective images of one category and run, SAMPLES of them."""
    normal, defective = (images["score"][images["defective"] == x].to_numpy() for x in (False, True))
    drawn = [x[generator.integers(len(x), size=(SAMPLES, len(x)))] for x in (normal, defective)]
    ranks = rankdata(np.hstack(drawn), axis=1)[:, len(normal) :].sum(axis=1)
    pairs = len(normal) * len(defective)
    return (ranks - len(defective) * (len(defective) + 1) / 2) / pairs


def interval(images: pd.DataFrame) -> str:
    """The middle 95 % of the mean image AUROC; the same test images are drawn for all seeds."""
    means = []
    for _, run in images.groupby("seed"):
        generator = np.random.default_rng(0)
        means.append(np.mean([bootstrap(rows, generator) for _, rows in run.groupby("category")], axis=0))
    low, high = np.percentile(np.mean(means, axis=0), [2.5, 97.5])
    return f"{100 * low:.1f} to {100 * high:.1f}"


def above_the_limit(images: pd.DataFrame) -> list[str]:
    """Shares of normal and of defective images above the limit, means over categories and seeds, of a model of CCL."""
    if images["model"].iloc[0] != "CCL":
        return ["", ""]
    shares = (images["score"] > 1).groupby([images["defective"], images["category"]]).mean()
    return [f"{100 * share:.1f}" for share in shares.groupby("defective").mean()]


def main() -> None:
    """Print the table, and write the figures of each category to a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the benchmarks left their files")
    parser.add_argument("--apart", nargs="*", default=[], help="categories whose image figures stay out of the mean")
    parser.add_argument("--csv", type=Path, help="file for the figures of each category")
    arguments = parser.parse_args()

    categories = read(arguments.folder, "categories").query("category != 'mean'")
    images = read(arguments.folder, "images")
    categories["row"], images["row"] = name_rows(categories), name_rows(images)
    categories = whole_runs(categories)
    kept = categories[["row", "seed", "category"]].assign(stamp=categories["file"].str.removesuffix("-categories.csv"))
    images = images.assign(stamp=images["file"].str.removesuffix("-images.csv")).merge(kept)
    image_figures = [figure for figure in FIGURES if figure.startswith("image")]
    counted = categories.copy()
    counted.loc[counted["category"].isin(arguments.apart), image_figures] = np.nan

    columns = ["", "seeds", "image AUROC", "95 % interval", "pixel AUROC", "AUPRO", "false alarms", "found"]
    columns += [f"image AUROC of {category}" for category in arguments.apart]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for row, frame in counted.groupby("row", sort=False):
        seeds = 100 * frame.groupby("seed")[FIGURES].mean()
        spread = seeds.std() if len(seeds) > 1 else seeds.iloc[0] * np.nan
        image, *pixel = (f"{seeds[x].mean():.1f} ± {spread[x]:.1f}".replace(" ± nan", "") for x in FIGURES)
        own = images[(images["row"] == row) & ~images["category"].isin(arguments.apart)]
        apart = categories[categories["row"] == row].groupby("category")["image_AUROC"].mean()
        alone = [f"{100 * apart[category]:.1f}" if category in apart else "" for category in arguments.apart]
        cells = [row, str(len(seeds)), image, interval(own), *pixel, *above_the_limit(own), *alone]
        print(f"| {' | '.join(cells)} |")
    if arguments.csv:
        table = 100 * categories.groupby(["row", "category"], sort=False)[FIGURES].agg(["mean", "std"])
        intervals = {group: interval(own) for group, own in images.groupby(["row", "category"])}
        table["image_AUROC", "95 % interval"] = pd.Series(intervals)
        table.round(2).to_csv(arguments.csv)


if __name__ == "__main__":
    main()
