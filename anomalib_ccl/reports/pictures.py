"""Pictures of what a calibrated model knows of its products: the embedding, the scores, the recognised categories."""

from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

#: What an image of no known category is recognised as.
UNKNOWN = "unknown"
# The colours of Okabe and Ito, which colour-blind people can distinguish, without yellow, which is too pale on white.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_NORMAL, _DEFECTIVE = "#56B4E9", "#D55E00"
# How the two kinds of images are marked, and the prototypes.
_KINDS: dict[str, dict[str, Any]] = {
    "normal test image": {"marker": "o", "markersize": 5, "fillstyle": "none"},
    "defective test image": {"marker": "x", "markersize": 4},
}
_PROTOTYPE: dict[str, Any] = {"marker": "*", "markersize": 14, "markeredgecolor": "white"}
_MOST_IMAGES = 5000  # t-SNE of more takes minutes, and their points would hide each other
_FEWEST_POINTS = 30  # of fewer, t-SNE shows little but chance
_LEGEND_ROWS = 30  # that fit at the side of the embedding
_NAME_LETTERS = 20  # in a line


def embedding_picture(
    images: pd.DataFrame, embeddings: np.ndarray, prototypes: np.ndarray, classes: list[str]
) -> Figure:
    """Draw the embedding in two dimensions, by t-SNE or, if there are fewer than 30 points, by PCA.

    Each category has a colour and, because colours repeat from the eighth on, a number.
    """
    images = images.sample(min(len(images), _MOST_IMAGES), random_state=0)
    vectors = np.concatenate([embeddings[images.index], prototypes])
    few = len(vectors) < _FEWEST_POINTS
    points, stars = np.split(_flat(vectors, few), [len(images)])
    names = sorted({*images["category"], *classes})
    legend_columns = 1 + (len(names) + len(_KINDS)) // _LEGEND_ROWS
    figure = Figure(figsize=(7.5 + 2.5 * legend_columns, 7), layout="constrained")
    axes = figure.subplots()
    axes.set(title=f"Embedding ({'PCA' if few else 't-SNE'})", xticks=[], yticks=[])
    if not few:
        axes.set_xlabel("t-SNE shows which images are neighbours, not how far apart groups are")
    handles = []
    for number, name in enumerate(names, start=1):
        colour = _COLOURS[(number - 1) % len(_COLOURS)]
        own = (images["category"] == name).to_numpy()
        for anomalous, style in zip((False, True), _KINDS.values(), strict=True):
            axes.plot(*points[own & (images["anomalous"] == anomalous)].T, ls="none", color=colour, **style)
        prototype = stars[np.array(classes) == name]
        axes.plot(*prototype.T, ls="none", color=colour, zorder=3, **_PROTOTYPE)
        for place in prototype if len(prototype) else [np.median(points[own], axis=0)]:
            _write(axes, str(number), place)
        handles.append(Line2D([], [], marker="s", ls="", color=colour, label=f"{number}  {_label(name)}"))
    marks = {**_KINDS, "prototype": _PROTOTYPE}
    handles += [Line2D([], [], ls="", color="grey", label=label, **style) for label, style in marks.items()]
    figure.legend(handles=handles, loc="outside right upper", ncols=legend_columns)
    return figure


def score_picture(images: pd.DataFrame) -> Figure:
    """Draw histograms of the scores of normal and defective test images, before and after calibration.

    A row for each category, with the number of its images; all rows have the same scores on their axis. After
    calibration the threshold is 1, the limit of each class; before, the one that raises as many false alarms in all.
    """
    names, normal = sorted(images["category"].unique()), images[~images["anomalous"]]
    share = (normal["calibrated"] > 1).mean() if len(normal) else 0.0
    thresholds = {"raw": np.quantile(normal["raw"] if len(normal) else images["raw"], 1 - share), "calibrated": 1.0}
    figure = Figure(figsize=(10, 1.4 + 0.95 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), 2, sharex="col", sharey="row", squeeze=False)
    for (score, limit), stage, column in zip(thresholds.items(), ("before", "after"), grid.T, strict=True):
        bins = np.linspace(images[score].min(), images[score].max(), 41).tolist()
        for axes, name in zip(column, names, strict=True):
            _draw_scores(axes, images[images["category"] == name], score, bins, limit)
        column[0].set_title(f"{stage} calibration", loc="left", weight="bold", pad=8)
        column[-1].set_xlabel("image score")
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.set_ylabel(_label(name), rotation=0, ha="right", va="center")
    figure.supylabel("number of images", size="medium")
    handles = [
        Patch(facecolor=_NORMAL, label="normal"),
        Patch(facecolor="none", edgecolor=_DEFECTIVE, hatch="////", label="defective"),
        Line2D([], [], color="black", ls="--", label="one threshold for all, with as many false alarms in all"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    return figure


def recognition_picture(images: pd.DataFrame) -> Figure:
    """Draw which category is recognised in the test images of each."""
    names = sorted(images["category"].unique())
    others = sorted(set(images["recognised"]) - {*names, UNKNOWN})
    share = pd.crosstab(images["category"], images["recognised"], normalize="index")
    share = 100 * share.reindex(index=names, columns=[*names, *others, UNKNOWN], fill_value=0)
    columns, rows = list(map(_label, share.columns)), list(map(_label, share.index))
    lines = max(label.count("\n") + 1 for label in columns)
    side = 3 + max(0.5, 0.2 * lines) * len(names)
    figure = Figure(figsize=(side + 0.5, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(share.shape[1]), columns, rotation=90)
    axes.set_yticks(range(share.shape[0]), rows)
    axes.set(xlabel="recognised as", ylabel="category", title="Recognition of the test images (%)")
    for (row, column), value in np.ndenumerate(share):
        if value:
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color="white" if value > 60 else "black")
    return figure


def _draw_scores(axes: Axes, images: pd.DataFrame, score: str, bins: list[float], limit: float) -> None:
    """Draw the histograms of one category."""
    normal, defective = images.loc[~images["anomalous"], score], images.loc[images["anomalous"], score]
    shares = []
    step: dict[str, Any] = {"color": _DEFECTIVE, "histtype": "step", "hatch": "////"}
    for rate, part, style in (("false alarms", normal, {"color": _NORMAL}), ("detected", defective, step)):
        if len(part):
            axes.hist(part, bins, **style)
            shares.append(f"{rate} {100 * (part > limit).mean():.1f} %")
    axes.axvline(limit, color="black", ls="--", lw=1)
    axes.set_title(", ".join(shares), loc="right", size="small", pad=2)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    axes.spines[["top", "right"]].set_visible(False)


def _flat(vectors: np.ndarray, few: bool) -> np.ndarray:
    """Put vectors of shape ``(N, D)`` into the plane, few of them by PCA."""
    if few:
        return PCA(2, random_state=0).fit_transform(vectors)
    reduced = PCA(min(50, *vectors.shape), random_state=0).fit_transform(vectors)
    return TSNE(perplexity=min(30, len(vectors) / 4), random_state=0).fit_transform(reduced)


def _label(name: str) -> str:
    """Write a name in several lines if it is long, and without matplotlib's taking parts of it for formulas."""
    return fill(name, _NAME_LETTERS).replace("$", r"\$")


def _write(axes: Axes, text: str, place: np.ndarray) -> None:
    """Write a number next to a point, readable on whatever lies below."""
    outline = withStroke(linewidth=2, foreground="white")
    x, y = place
    axes.annotate(text, (x, y), (6, 6), textcoords="offset points", weight="bold", path_effects=[outline], zorder=4)
