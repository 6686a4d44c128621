"""The figures of each category of a test set."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from anomalib_ccl.metrics.pixel import PIXEL_METRICS, PixelMetrics, refuse
from anomalib_ccl.metrics.ranking import RANKING_METRICS, ranking_metrics

FIGURES = (
    *(f"image_{name}" for name in RANKING_METRICS),
    *(f"pixel_{name}" for name in PIXEL_METRICS),
    "false_alarms",
    "missed",
    "class_accuracy",
)
_COUNTS = ("normal_images", "anomalous_images")
# What the states hold for each image; 0 stands for nothing.
_UNSCORED, _SCORED = 1, 2
_NORMAL, _ANOMALOUS = 1, 2
_NO_CATEGORY, _FIRST_CATEGORY = 1, 2


class CategoryMetrics(Metric):
    """Image and pixel metrics of each category; exact for images, :class:`PixelMetrics` for pixels.

    Args:
        categories: (N,) the category of each image of the test set.
        labels: (N,) 1 if it is anomalous, else 0.

    Example:
        >>> metrics = CategoryMetrics(["cable", "bottle", "bottle"], [0, 0, 1])
        >>> metrics.update(torch.tensor([1, 2]), torch.tensor([0.2, 0.7]), verdict=torch.tensor([True, True]))
        >>> metrics.compute()[["category", "normal_images", "image_AUROC", "false_alarms", "missed"]]
          category  normal_images  image_AUROC  false_alarms  missed
        0   bottle              1          1.0           1.0     0.0
        1    cable              0          NaN           NaN     NaN
    """

    full_state_update = False
    score: Tensor
    seen: Tensor
    verdict: Tensor
    recognised: Tensor
    measured: Tensor

    def __init__(self, categories: Sequence[str], labels: Sequence[int]) -> None:
        super().__init__()
        self.names, category = np.unique(np.asarray(categories), return_inverse=True)
        self.category = torch.from_numpy(category)
        self.labels = np.asarray(labels)
        # One place for each image, so that the states of several processes, each with its own images, add up.
        self.add_state("score", torch.zeros(len(category), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("seen", "verdict", "recognised"):
            self.add_state(name, torch.zeros(len(category), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("measured", torch.zeros(len(self.names), dtype=torch.int64), dist_reduce_fx="sum")
        self.pixel = nn.ModuleList(PixelMetrics() for _ in self.names)

    def update(
        self,
        image: Tensor,
        score: Tensor | None = None,
        anomaly_map: Tensor | None = None,
        mask: Tensor | None = None,
        verdict: Tensor | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        """Add the predictions for some images.

        Args:
            image: (B,) their indices in the test set.
            score: (B,) or (B, 1) image scores, if the model gives any.
            anomaly_map: (B, H, W) or (B, 1, H, W) pixel scores, if the model gives any.
            mask: Of the map's height and width, nonzero where anomalous, if the data set has masks.
            verdict: (B,) or (B, 1), nonzero where the model calls an image anomalous, if it does.
            classes: (B,) names of the classes that the model takes the images for, if it names any.

        Raises:
            ValueError: If a map and its mask differ in size, a score is NaN or infinite, or a map holds NaN.
        """
        self.seen[image] = _UNSCORED
        if score is not None:
            refuse(~score.isfinite(), "image scores", "NaN or infinite")
            self.score[image] = score.flatten().to(self.score)
            self.seen[image] = _SCORED
        if anomaly_map is not None and mask is not None:
            category = self.category[image]
            for number in category.unique().tolist():
                self.pixel[number].update(anomaly_map[category == number], mask[category == number])
                self.measured[number] = 1
        if verdict is not None:
            self.verdict[image] = _NORMAL + (verdict.flatten() != 0).to(self.verdict)
        if classes is not None:
            number_of_name = {str(name): number for number, name in enumerate(self.names, start=_FIRST_CATEGORY)}
            numbers = [number_of_name.get(name, _NO_CATEGORY) for name in classes]
            self.recognised[image] = torch.tensor(numbers, dtype=torch.int64).to(self.recognised)

    def compute(self) -> pd.DataFrame:
        """Compute the figures.

        Returns:
            A row for each category, sorted: ``category``, ``normal_images``, ``anomalous_images``, ``image_AUROC``,
            ``image_AP``, ``image_F1Max``, ``pixel_AUROC``, ``pixel_AP``, ``pixel_F1Max``, ``pixel_AUPRO``,
            ``false_alarms`` (the share of its normal images that the model calls anomalous), ``missed`` (of its
            anomalous images called normal) and ``class_accuracy`` (of all its images recognised as this category).
            Figures are in [0, 1]; NaN where there are no such images or pixels, for the rankings also where there are
            only such, and the accuracy where the model recognised none of the categories in any image.
        """
        score, seen, verdict, recognised = (
            state.cpu().numpy() for state in (self.score, self.seen, self.verdict, self.recognised)
        )
        knows_categories = bool((recognised >= _FIRST_CATEGORY).any())
        rows = []
        for number, name in enumerate(self.names):
            own = (seen > 0) & (self.category.numpy() == number)
            normal, anomalous = (own & (self.labels == label) for label in (0, 1))
            row = {"category": str(name), "normal_images": int(normal.sum()), "anomalous_images": int(anomalous.sum())}
            scored = (normal | anomalous) & (seen == _SCORED)
            row |= {f"image_{key}": x for key, x in ranking_metrics(self.labels[scored], score[scored]).items()}
            if self.measured[number]:
                pixel = cast("PixelMetrics", self.pixel[number])
                row |= {f"pixel_{key}": value for key, value in pixel.compute().items()}
            row["false_alarms"] = _share(verdict[normal & (verdict > 0)] == _ANOMALOUS)
            row["missed"] = _share(verdict[anomalous & (verdict > 0)] == _NORMAL)
            if knows_categories:
                row["class_accuracy"] = _share(recognised[own] == number + _FIRST_CATEGORY)
            rows.append(row)
        return pd.DataFrame(rows, columns=["category", *_COUNTS, *FIGURES])


def _share(true: np.ndarray) -> float:
    """The share of what is true, NaN of nothing."""
    return float(true.mean()) if len(true) else float("nan")


def with_mean(report: pd.DataFrame) -> pd.DataFrame:
    """Add the mean over the categories to a report, by which the field compares multi-class models."""
    mean = {"category": "mean", **report[list(_COUNTS)].sum(), **report[list(FIGURES)].mean()}
    return pd.concat([report, pd.DataFrame([mean])], ignore_index=True)
