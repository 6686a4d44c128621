"""How well a model's embedding tells the categories apart."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from sklearn.cluster import KMeans
from sklearn.metrics import v_measure_score
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

# Enough to see clusters, and a bound for the memory: 100 embeddings of WideResNet-50-2 are 0.8 MiB.
_PER_CATEGORY = 100


class EmbeddingVMeasure(Metric):
    """V-measure of k-means clusters of the embeddings against the categories, as many clusters as categories.

    Of each category, the first 100 images count. 1 means that each cluster is one category (Rosenberg & Hirschberg,
    2007, https://aclanthology.org/D07-1043).

    Args:
        categories: (N,) the category of each image of the test set.

    Example:
        >>> metric = EmbeddingVMeasure(["cable", "bottle", "bottle"])
        >>> metric.update(torch.tensor([0, 1, 2]), torch.tensor([[1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]))
        >>> metric.compute()
        1.0
    """

    full_state_update = False
    image: list[Tensor]
    embedding: list[Tensor]

    def __init__(self, categories: Sequence[str]) -> None:
        super().__init__()
        names = pd.Series(categories)
        self.category = names.to_numpy()
        self.counts = torch.tensor((names.groupby(names).cumcount() < _PER_CATEGORY).tolist(), dtype=torch.bool)
        self.add_state("image", [], dist_reduce_fx="cat")
        self.add_state("embedding", [], dist_reduce_fx="cat")

    def update(self, image: Tensor, embedding: Tensor) -> None:
        """Add the embeddings of some images.

        Args:
            image: (B,) their indices in the test set.
            embedding: (B, D) their embeddings.
        """
        counts = self.counts[image]
        self.image.append(image[counts].to(self.device))
        self.embedding.append(F.normalize(embedding[counts.to(embedding.device)].float(), dim=1).to(self.device))

    def compute(self) -> float:
        """Cluster the embeddings.

        Returns:
            The V-measure, in [0, 1]; NaN without embeddings or with fewer than two categories.
        """
        # Gathered from several processes, the lists are tensors.
        if not len(self.image):
            return float("nan")
        image, embedding = (dim_zero_cat(state).cpu().numpy() for state in (self.image, self.embedding))
        return embedding_v_measure(embedding, self.category[image])


def embedding_v_measure(embeddings: np.ndarray, categories: ArrayLike) -> float:
    """Cluster embeddings into as many clusters as there are categories, and compare the two.

    Args:
        embeddings: L2-normalised embeddings, of shape ``(N, D)``.
        categories: (N,) the category of each.

    Returns:
        The V-measure, in [0, 1]; NaN with fewer than two categories.

    Example:
        >>> embedding_v_measure(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), ["cable", "bottle", "bottle"])
        1.0
    """
    k = len(np.unique(categories))
    if k < 2:
        return float("nan")
    clusters = KMeans(k, n_init=10, random_state=0).fit_predict(embeddings)
    return float(v_measure_score(categories, clusters))
