"""How well a score ranks the anomalous above the normal: AUROC, average precision and the best F1 score."""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

RANKING_METRICS = ("AUROC", "AP", "F1Max")


def ranking_metrics(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> dict[str, float]:
    """Compute the three threshold-free figures of a score with scikit-learn; NaN where one kind is missing."""
    labels = np.asarray(labels)
    counted = labels if weights is None else labels[np.asarray(weights) > 0]
    if len(np.unique(counted)) < 2:
        return dict.fromkeys(RANKING_METRICS, float("nan"))
    precision, recall, _ = precision_recall_curve(labels, scores, sample_weight=weights)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    return {
        "AUROC": float(roc_auc_score(labels, scores, sample_weight=weights)),
        "AP": float(average_precision_score(labels, scores, sample_weight=weights)),
        "F1Max": float(f1.max()),
    }
