"""Classes for images that nobody sorted: k-means on pooled features of a pre-trained network."""

import math
import warnings
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import silhouette_score

from anomalib_ccl.errors import InputError

ClassCount = int | Literal["auto"]

# Images that the clusters are found on, and those that the silhouette, whose cost is quadratic, is measured on.
_SAMPLE = 10_000
_SILHOUETTE_SAMPLE = 2_000
_COMPONENTS = 64
_MAX_CLASSES = 50
# Measured with tf_efficientnet_lite0 on eleven products: alone, ten of them reach 0.10 to 0.37 (the other one, whose
# images show four views, 0.66 with k = 4); mixtures of two to six products reach 0.58 to 0.87.
_MIN_SILHOUETTE = 0.5
# Root mean square distance from the mean, of vectors with parts of unit length; the products above have over 0.15.
_SAME = 0.01


class Clustering(NamedTuple):
    """Images sorted into classes.

    Attributes:
        labels: The class of each image, of shape ``(N,)``, numbered from 0 in the order in which they first appear.
        silhouette: How well the classes are separated, in [-1, 1]; NaN where that is not defined.
    """

    labels: NDArray[np.intp]
    silhouette: float


def pseudo_classes(features: NDArray[np.floating], k: ClassCount = "auto") -> Clustering:
    """Sort images into classes by k-means.

    Of more than 10,000 images, as many drawn at random find the clusters, and all join the nearest one. The same
    features give the same classes.

    Args:
        features: One row for each image, of shape ``(N, D)``, such as pooled features.
        k: Number of classes, from 1 to N. ``"auto"`` tries 2 to 50, at most N / 2, and takes the number with the
            highest silhouette (Rousseeuw, 1987); where none reaches 0.5, all images are of one class.

    Returns:
        The classes. Images with equal features are of one class, so there can be fewer classes than k.

    Raises:
        InputError: If k is less than 1 or more than the number of images.

    Example:
        >>> features = np.repeat([[0.0, 1.0], [1.0, 0.0]], 3, axis=0)
        >>> pseudo_classes(features).labels
        array([0, 0, 0, 1, 1, 1])
        >>> pseudo_classes(features[:3]).labels
        array([0, 0, 0])
    """
    check_class_count(k, len(features))
    chosen = np.random.default_rng(0).permutation(len(features))[:_SAMPLE]
    sample = features[chosen].astype(np.float32)
    one_class = Clustering(np.zeros(len(features), dtype=np.intp), math.nan)
    if k == 1 or np.sqrt(sample.var(axis=0).sum()) < _SAME:
        return one_class

    projection = PCA(min(_COMPONENTS, *sample.shape), svd_solver="randomized", random_state=0).fit(sample)
    points = projection.transform(sample)
    counts = range(2, min(_MAX_CLASSES, len(points) // 2) + 1) if k == "auto" else [k]
    found = [_k_means(points, count) for count in counts]
    if k == "auto":
        found = [(clusters, silhouette) for clusters, silhouette in found if silhouette >= _MIN_SILHOUETTE]
    if not found:
        return one_class
    clusters, silhouette = max(found, key=lambda pair: pair[1])

    labels = [
        clusters.predict(projection.transform(features[start : start + _SAMPLE].astype(np.float32)))
        for start in range(0, len(features), _SAMPLE)
    ]
    return Clustering(_in_order_of_appearance(np.concatenate(labels)), silhouette)


def check_class_count(k: ClassCount, images: int | None = None) -> None:
    """Check that so many classes can be made.

    Example:
        >>> check_class_count(9, images=8)
        Traceback (most recent call last):
        ...
        anomalib_ccl.errors.InputError: n_pseudo_classes is 9, but there are only 8 training images; give at most ...
    """
    if k == "auto":
        return
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        msg = f"n_pseudo_classes must be 'auto' or a whole number from 1 on, got {k!r}"
        raise InputError(msg)
    if images is not None and k > images:
        msg = f"n_pseudo_classes is {k}, but there are only {images} training images; give at most {images}, or 'auto'"
        raise InputError(msg)


def _k_means(points: NDArray[np.float32], k: int) -> tuple[KMeans, float]:
    with warnings.catch_warnings():
        # It warns where fewer than k points differ, which is what our docstring says.
        warnings.simplefilter("ignore", ConvergenceWarning)
        clusters = KMeans(k, n_init=10, random_state=0).fit(points)
    points, labels = points[:_SILHOUETTE_SAMPLE], clusters.labels_[:_SILHOUETTE_SAMPLE]
    defined = 1 < len(np.unique(labels)) < len(labels)
    return clusters, float(silhouette_score(points, labels)) if defined else math.nan


def _in_order_of_appearance(labels: NDArray[np.int32]) -> NDArray[np.intp]:
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]
