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

from anomalib_ccl.insight.figures import SCORES, UNKNOWN, threshold
from anomalib_ccl.insight.scores import Scores

# The colours of Okabe and Ito, which colour-blind people can tell apart, without yellow, which is too pale on white.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_NORMAL, _DEFECTIVE = "#56B4E9", "#D55E00"
# How the three kinds of images are marked, and the prototypes.
_KINDS: dict[str, dict[str, Any]] = {
    "training image": {"marker": ".", "markersize": 5, "markeredgewidth": 0, "alpha": 0.5},
    "normal test image": {"marker": "o", "markersize": 5, "fillstyle": "none"},
    "defective test image": {"marker": "x", "markersize": 4},
}
_PROTOTYPE: dict[str, Any] = {"marker": "*", "markersize": 14, "markeredgecolor": "white"}
# t-SNE of more images takes minutes, and their points would hide each other.
_MOST_IMAGES = 5000
# t-SNE goes by the neighbours of each point, and of fewer points shows little but chance.
_FEWEST_POINTS = 30
# Rows of a legend that fit beside the embedding.
_LEGEND_ROWS = 30
_RATE = 0.05
_NAME_LETTERS = 20  # in a line


def embedding_picture(scores: Scores) -> Figure:
    """Draw the embedding in two dimensions, by t-SNE or, if there are fewer than 30 points, by PCA.

    Each category has a colour and, because colours repeat from the eighth on, a number.

    Args:
        scores: The scores of the images, of which at most 5,000, drawn at random, are shown.

    Returns:
        The picture.
    """
    images = scores.images.sample(min(len(scores.images), _MOST_IMAGES), random_state=0)
    vectors = np.concatenate([scores.embeddings[images.index], scores.prototypes])
    method = "PCA" if len(vectors) < _FEWEST_POINTS else "t-SNE"
    points, prototypes = np.split(_flat(vectors, method), [len(images)])
    kind = np.select(
        [images["subset"] == "train", images["anomalous"]],
        ["training image", "defective test image"],
        "normal test image",
    )

    names = sorted({*images["category"], *scores.categories})
    legend_columns = 1 + (len(names) + len(_KINDS)) // _LEGEND_ROWS
    figure = Figure(figsize=(7.5 + 2.5 * legend_columns, 7), layout="constrained")
    axes = figure.subplots()
    axes.set(title=f"Embedding ({method})", xticks=[], yticks=[])
    colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}
    for number, (name, colour) in enumerate(colours.items(), start=1):
        own = (images["category"] == name).to_numpy()
        for key, style in _KINDS.items():
            axes.plot(*points[own & (kind == key)].T, linestyle="none", color=colour, **style)
        stars = prototypes[np.array(scores.categories) == name]
        axes.plot(*stars.T, linestyle="none", color=colour, zorder=3, **_PROTOTYPE)
        for x, y in stars if len(stars) else [np.median(points[own], axis=0)]:
            _write(axes, str(number), (x, y))

    marks = {**_KINDS, "prototype": _PROTOTYPE}
    handles = [
        *(
            Line2D([], [], marker="s", ls="", color=c, label=f"{i}  {_label(x)}")
            for i, (x, c) in enumerate(colours.items(), 1)
        ),
        *(Line2D([], [], ls="", color="grey", label=label, **style) for label, style in marks.items()),
    ]
    figure.legend(handles=handles, loc="outside right upper", ncols=legend_columns)
    return figure


def score_picture(images: pd.DataFrame) -> Figure:
    """Draw histograms of the scores of normal and defective test images, before and after calibration.

    A row for each category, with the number of its images; all rows have the same scores on their axis and the same
    threshold, that for 5 % of false alarms on the training images.

    Args:
        images: The images of :class:`~anomalib_ccl.insight.Scores`.

    Returns:
        The picture.
    """
    test = images[images["subset"] == "test"]
    names = sorted(test["category"].unique())
    figure = Figure(figsize=(10, 1.4 + 0.95 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), len(SCORES), sharex="col", sharey="row", squeeze=False)
    for score, stage, column in zip(SCORES, ("before", "after"), grid.T, strict=True):
        limit = threshold(images, score, _RATE)
        bins = np.linspace(test[score].min(), test[score].max(), 41).tolist()
        for axes, name in zip(column, names, strict=True):
            _draw_scores(axes, test[test["category"] == name], score, bins, limit)
        column[0].set_title(f"{stage} calibration", loc="left", weight="bold", pad=8)
        column[-1].set_xlabel("image score")
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.set_ylabel(_label(name), rotation=0, ha="right", va="center")
    figure.supylabel("number of images", size="medium")
    exceeded = f"threshold: exceeded by {100 * _RATE:.0f} % of the training images"
    handles = [
        Patch(facecolor=_NORMAL, label="normal"),
        Patch(facecolor="none", edgecolor=_DEFECTIVE, hatch="////", label="defective"),
        Line2D([], [], color="black", ls="--", label=exceeded),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    return figure


def confusion_picture(images: pd.DataFrame) -> Figure:
    """Draw which category is recognised in the test images of each.

    Args:
        images: The images of :class:`~anomalib_ccl.insight.Scores`.

    Returns:
        The picture: the share of each row's images in percent, empty where there are none.
    """
    test = images[images["subset"] == "test"]
    names = sorted(test["category"].unique())
    others = sorted(set(test["recognised"]) - {*names, UNKNOWN})
    share = pd.crosstab(test["category"], test["recognised"], normalize="index")
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


def _flat(vectors: np.ndarray, method: str) -> np.ndarray:
    """Put vectors of shape ``(N, D)`` into the plane."""
    if method == "PCA":
        return PCA(2, random_state=0).fit_transform(vectors)
    few = PCA(min(50, *vectors.shape), random_state=0).fit_transform(vectors)
    return TSNE(perplexity=min(30, len(vectors) / 4), random_state=0).fit_transform(few)


def _label(name: str) -> str:
    """Write a name in several lines if it is long, and without matplotlib's taking parts of it for formulas."""
    return fill(name, _NAME_LETTERS).replace("$", r"\$")


def _write(axes: Axes, text: str, place: tuple[float, float]) -> None:
    """Write a number beside a point, readable on whatever lies below."""
    outline = withStroke(linewidth=2, foreground="white")
    axes.annotate(text, place, (6, 6), textcoords="offset points", weight="bold", path_effects=[outline], zorder=4)
