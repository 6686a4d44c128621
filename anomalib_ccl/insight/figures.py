"""How well a calibrated model knows its products, and how well one threshold fits all of them."""

import math

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score

from anomalib_ccl.metrics.embedding import embedding_v_measure
from anomalib_ccl.metrics.ranking import ranking_metrics

UNKNOWN = "unknown"
# The rates of the one threshold for all, set from the training images, and of the model's own limits.
THRESHOLD_RATES = (0.05, 0.10)
LIMIT_RATES = (0.01, 0.05, 0.10)
# Before and after calibration.
SCORES = ("raw", "calibrated")


def at_rate(name: str, rate: float) -> str:
    """Name the column of a figure at a false-alarm rate.

    Example:
        >>> at_rate("detected", 0.05)
        'detected_5'
    """
    return f"{name}_{round(100 * rate)}"


def threshold(images: pd.DataFrame, score: str, rate: float) -> float:
    """Set one threshold for all categories from their training images.

    Args:
        images: The images of :class:`~anomalib_ccl.insight.Scores`.
        score: The column of the scores.
        rate: Share of the training images that exceed it, in [0, 1].

    Returns:
        The threshold.

    Example:
        >>> images = pd.DataFrame({"subset": ["train"] * 3 + ["test"], "raw": [1.0, 2.0, 3.0, 9.0]})
        >>> threshold(images, "raw", 0.5)
        2.0
    """
    return float(np.quantile(images.loc[images["subset"] == "train", score], 1 - rate))


def calibration_figures(images: pd.DataFrame, embeddings: np.ndarray, f1_threshold: float) -> pd.DataFrame:
    """Compute the figures of each category, and those of all that the model was trained on.

    Args:
        images: The images of :class:`~anomalib_ccl.insight.Scores`, N rows.
        embeddings: Their embeddings, L2-normalised, of shape ``(N, D)``.
        f1_threshold: anomalib's image threshold on calibrated scores, or NaN.

    Returns:
        A row for each category of the test images, sorted, and three for those that the model was trained on:
        ``mean`` over the categories, ``spread`` (the largest less the smallest) of the false-alarm rates, and
        ``pooled``, the figures of all their images. Shares are in [0, 1]; NaN where there are no images to tell.
        The columns:

        - ``category``, ``trained_on``, ``normal_images``, ``anomalous_images``;
        - ``class_accuracy_normal``, ``class_accuracy_anomalous``: images recognised as their own category, or as
          unknown if the model was not trained on it; ``unknown_normal``, ``unknown_anomalous``: called unknown;
        - ``false_alarms_raw_5``, ``detected_raw_5``, ``false_alarms_calibrated_5``, … ``detected_calibrated_10``:
          normal and anomalous images above one threshold for all, that 5 or 10 % of the training images exceed;
        - ``image_AUROC_raw``, ``image_AUROC_calibrated``; ``image_F1`` at anomalib's threshold;
        - ``false_alarms_limit_1``, ``detected_limit_1``, … ``detected_limit_10``: normal and anomalous images above
          the model's own limits for 1, 5 and 10 % of false alarms;
        - ``V_measure``, of ``pooled`` alone: of k-means on the embeddings against the categories.

    Example:
        >>> images = pd.DataFrame({"category": "bolt", "recognised": "bolt", "raw": [2.0, 1.0, 4.0, 3.0]})
        >>> images["subset"], images["anomalous"] = ["train", "test", "test", "test"], [False, False, False, True]
        >>> for score in ("calibrated", "calibrated_1", "calibrated_5", "calibrated_10"):
        ...     images[score] = images["raw"]
        >>> figures = calibration_figures(images, np.eye(4), f1_threshold=2.5)
        >>> figures[["category", "false_alarms_raw_5", "detected_raw_5", "image_AUROC_raw", "image_F1"]]
          category  false_alarms_raw_5  detected_raw_5  image_AUROC_raw  image_F1
        0     bolt                 0.5             1.0              0.5  0.666...
        1     mean                 0.5             1.0              0.5  0.666...
        2   spread                 0.0             NaN              NaN       NaN
        3   pooled                 0.5             1.0              0.5  0.666...
    """
    thresholds = {(score, rate): threshold(images, score, rate) for score in SCORES for rate in THRESHOLD_RATES}
    trained_on = set(images.loc[images["subset"] == "train", "category"])
    expected = images["category"].where(images["category"].isin(trained_on), UNKNOWN)
    test = images.assign(right=images["recognised"] == expected)[images["subset"] == "test"]

    rows = pd.DataFrame(
        [
            {"category": name, "trained_on": name in trained_on, **_row(own, thresholds, f1_threshold)}
            for name, own in test.groupby("category")
        ]
    )
    known = rows[rows["trained_on"]].drop(columns=["category", "trained_on"])
    counts = known[["normal_images", "anomalous_images"]].sum()
    false_alarms = known.filter(like="false_alarms")
    pooled = test[test["category"].isin(trained_on)]
    v_measure = embedding_v_measure(embeddings[pooled.index], pooled["category"])
    summary = [
        {"category": "mean", "trained_on": True, **known.mean(), **counts},
        {"category": "spread", "trained_on": True, **(false_alarms.max() - false_alarms.min())},
        {"category": "pooled", "trained_on": True, **_row(pooled, thresholds, f1_threshold), "V_measure": v_measure},
    ]
    figures = pd.concat([rows, pd.DataFrame(summary)], ignore_index=True)
    return figures.astype({"normal_images": "Int64", "anomalous_images": "Int64"})  # whole numbers, or none


def _row(images: pd.DataFrame, thresholds: dict[tuple[str, float], float], f1_threshold: float) -> dict[str, float]:
    """Compute the figures of some test images."""
    normal, anomalous = images[~images["anomalous"]], images[images["anomalous"]]
    row: dict[str, float] = {"normal_images": len(normal), "anomalous_images": len(anomalous)}
    parts = {"normal": normal, "anomalous": anomalous}
    row |= {f"class_accuracy_{name}": part["right"].mean() for name, part in parts.items()}
    row |= {f"unknown_{name}": (part["recognised"] == UNKNOWN).mean() for name, part in parts.items()}
    for (score, rate), limit in thresholds.items():
        row |= _alarms(normal, anomalous, score, limit, at_rate(score, rate))
    for score in SCORES:
        row[f"image_AUROC_{score}"] = ranking_metrics(images["anomalous"], images[score])["AUROC"]
    flagged = images["calibrated"] > f1_threshold
    has_f1 = len(anomalous) and not math.isnan(f1_threshold)
    row["image_F1"] = f1_score(images["anomalous"], flagged) if has_f1 else math.nan
    for rate in LIMIT_RATES:
        row |= _alarms(normal, anomalous, at_rate("calibrated", rate), 1.0, at_rate("limit", rate))
    return row


def _alarms(normal: pd.DataFrame, anomalous: pd.DataFrame, score: str, limit: float, name: str) -> dict[str, float]:
    return {
        f"false_alarms_{name}": (normal[score] > limit).mean(),
        f"detected_{name}": (anomalous[score] > limit).mean(),
    }
