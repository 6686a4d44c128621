"""The figures of each category of a test set."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from anomalib_ccl.metrics.pixel import PIXEL_METRICS, PixelMetrics, refuse_nan
from anomalib_ccl.metrics.ranking import RANKING_METRICS, ranking_metrics

FIGURES = (
    *(f"image_{name}" for name in RANKING_METRICS),
    *(f"pixel_{name}" for name in PIXEL_METRICS),
    "class_accuracy",
)
# What the state holds for an image of which no class was told, or one that is no category; then come the categories.
_NOT_TOLD, _NO_CATEGORY, _FIRST = range(3)


class CategoryMetrics(Metric):
    """Image and pixel metrics of each category; exact for images, :class:`PixelMetrics` for pixels.

    And the class accuracy: the share of images that the model says are of the category of which they are.

    Args:
        categories: (N,) the category of each image of the test set.
        labels: (N,) 1 if it is anomalous, else 0.

    Example:
        >>> metrics = CategoryMetrics(["cable", "bottle", "bottle"], [0, 0, 1])
        >>> metrics.update(torch.tensor([1, 2]), torch.tensor([0.2, 0.7]))
        >>> metrics.compute()[["category", "normal_images", "anomalous_images", "image_AUROC", "pixel_AUROC"]]
          category  normal_images  anomalous_images  image_AUROC  pixel_AUROC
        0   bottle              1                 1          1.0          NaN
        1    cable              0                 0          NaN          NaN
    """

    full_state_update = False
    score: Tensor
    seen: Tensor
    measured: Tensor
    told: Tensor

    def __init__(self, categories: Sequence[str], labels: Sequence[int]) -> None:
        super().__init__()
        self.names, category = np.unique(np.asarray(categories), return_inverse=True)
        self.category = torch.from_numpy(category)
        self.labels = np.asarray(labels)
        # One place for each image, so that the states of several processes, each with its own images, add up.
        self.add_state("score", torch.zeros(len(category), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("seen", torch.zeros(len(category), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("measured", torch.zeros(len(self.names), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("told", torch.zeros(len(category), dtype=torch.int64), dist_reduce_fx="sum")
        self.pixel = nn.ModuleList(PixelMetrics() for _ in self.names)

    def update(
        self,
        image: Tensor,
        score: Tensor | None = None,
        anomaly_map: Tensor | None = None,
        mask: Tensor | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        """Add the predictions for some images.

        Args:
            image: (B,) their indices in the test set.
            score: (B,) or (B, 1) image scores, if the model gives any.
            anomaly_map: (B, H, W) or (B, 1, H, W) pixel scores, if the model gives any.
            mask: Of the map's height and width, nonzero where anomalous, if the data set has masks.
            classes: (B,) names of the classes that the model takes the images for, if it tells any.

        Raises:
            ValueError: If a map and its mask differ in size or a score is NaN.
        """
        if score is not None:
            refuse_nan(score, "image scores")
            self.score[image] = score.flatten().to(self.score)
            self.seen[image] = 1
        if anomaly_map is not None and mask is not None:
            category = self.category[image]
            for number in category.unique().tolist():
                self.pixel[number].update(anomaly_map[category == number], mask[category == number])
                self.measured[number] = 1
        if classes is not None:
            number_of_name = {str(name): number for number, name in enumerate(self.names, start=_FIRST)}
            self.told[image] = torch.tensor([number_of_name.get(x, _NO_CATEGORY) for x in classes]).to(self.told)

    def compute(self) -> pd.DataFrame:
        """Compute the figures.

        Returns:
            A row for each category, sorted: ``category``, ``normal_images``, ``anomalous_images``,
            ``image_AUROC``, ``image_AP``, ``image_F1Max``, ``pixel_AUROC``, ``pixel_AP``, ``pixel_F1Max``,
            ``pixel_AUPRO``, ``class_accuracy``. Figures are in [0, 1], or NaN where there were no normal or no
            anomalous images or pixels; the accuracy is NaN if the model never told one of the categories.

        Raises:
            ValueError: If an image score is infinite.
        """
        told = self.told.cpu().numpy()
        knows_categories = bool((told >= _FIRST).any())
        seen, score = self.seen.bool().cpu().numpy(), self.score.cpu().numpy()
        rows = []
        for number, name in enumerate(self.names):
            images = seen & (self.category.numpy() == number)
            labels = self.labels[images]
            row = {
                "category": str(name),
                "normal_images": int((labels == 0).sum()),
                "anomalous_images": int((labels == 1).sum()),
            }
            row |= {f"image_{key}": value for key, value in ranking_metrics(labels, score[images]).items()}
            if self.measured[number]:
                pixel = cast("PixelMetrics", self.pixel[number])
                row |= {f"pixel_{key}": value for key, value in pixel.compute().items()}
            if knows_categories and images.any():
                row["class_accuracy"] = float((told[images] == number + _FIRST).mean())
            rows.append(row)
        return pd.DataFrame(rows, columns=["category", "normal_images", "anomalous_images", *FIGURES])

    def images(self) -> pd.DataFrame:
        """Give the score of each image that this process has seen.

        Returns:
            A row for each: ``category``, ``defective``, ``score``.
        """
        seen = self.seen.bool().cpu().numpy()
        columns = {
            "category": self.names[self.category.numpy()],
            "defective": self.labels == 1,
            "score": self.score.cpu().numpy(),
        }
        return pd.DataFrame(columns)[seen]


def with_mean(report: pd.DataFrame) -> pd.DataFrame:
    """Add the mean over the categories to a report, by which the field compares multi-class models.

    Args:
        report: What :meth:`CategoryMetrics.compute` returns.

    Returns:
        The report and, as its last row, ``mean``: the sums of the images and the means of the figures, each
        over the categories that have it; NaN if none has.

    Example:
        >>> metrics = CategoryMetrics(["bottle", "bottle", "cable"], [0, 1, 1])
        >>> metrics.update(torch.tensor([0, 1, 2]), torch.tensor([0.2, 0.7, 0.1]))
        >>> with_mean(metrics.compute())[["category", "anomalous_images", "image_AUROC"]]
          category  anomalous_images  image_AUROC
        0   bottle                 1          1.0
        1    cable                 1          NaN
        2     mean                 2          1.0
    """
    counts = report[["normal_images", "anomalous_images"]].sum()
    mean = {"category": "mean", **counts, **report[list(FIGURES)].mean()}
    return pd.concat([report, pd.DataFrame([mean])], ignore_index=True)
