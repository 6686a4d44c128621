"""One pass of a calibrated model over its normal training images, and one over the test images."""

from collections.abc import Sequence
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from anomalib.data import AnomalibDataModule
from torch import Tensor
from torch.nn import functional as F

from anomalib_ccl.insight.figures import LIMIT_RATES, UNKNOWN, at_rate
from anomalib_ccl.metrics.pixel import refuse_nan
from anomalib_ccl.model import CCL
from anomalib_ccl.model.calibration import ClassCalibration
from anomalib_ccl.training.scoring import raw_scores
from anomalib_ccl.training.views import calibration_view


class Scores(NamedTuple):
    """What a model makes of N images.

    Attributes:
        images: N rows: ``subset`` ("train" or "test"), ``category``, ``anomalous``, ``recognised`` (the category of
            the class that the model recognises, or ``"unknown"``), ``raw`` (the score before calibration),
            ``calibrated`` (as the model gives it), and ``calibrated_1``, ``calibrated_5``, ``calibrated_10`` (with
            limits for 1, 5 and 10 % of false alarms). Training images of categories that the model was not trained
            on are left out.
        embeddings: L2-normalised, of shape ``(N, D)``.
        prototypes: L2-normalised, of shape ``(K, D)``, one for each class of the model.
        categories: The category that each of the K classes stands for.
        f1_threshold: anomalib's image threshold on calibrated scores; NaN if the model has none.
    """

    images: pd.DataFrame
    embeddings: np.ndarray
    prototypes: np.ndarray
    categories: list[str]
    f1_threshold: float


@torch.no_grad()
def collect_scores(model: CCL, datamodule: AnomalibDataModule) -> Scores:
    """Score the training images, as calibration saw them, and the test images.

    Args:
        model: A trained and calibrated model.
        datamodule: Datamodule that tells the category of each image, such as
            :class:`~anomalib_ccl.data.MultiCategory`. If it is that of the training, the training images are seen in
            the very views that the model was calibrated with.

    Returns:
        The scores of all images and what is needed to judge them.

    Raises:
        ValueError: If the model is not calibrated or was trained on none of the categories, the datamodule does not
            tell them, or a score is NaN.
    """
    calibration = model.model.calibration
    if not calibration.is_calibrated:
        msg = (
            "this model is not calibrated: its training was not finished, had calibrate=False or was one of an "
            "earlier version. Train it to the last epoch with calibrate=True"
        )
        raise ValueError(msg)
    datamodule.prepare_data()
    datamodule.setup()
    train, test = datamodule.train_dataloader(), datamodule.test_dataloader()
    samples = pd.concat({"train": train.dataset.samples, "test": test.dataset.samples}, names=["subset"])
    if "category" not in samples:
        msg = (
            f"{type(datamodule).__name__} does not tell the category of each image; use MultiCategory, which joins "
            "the categories of any of anomalib's data sets, Folder among them"
        )
        raise ValueError(msg)

    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    passes = [
        raw_scores(model, train, "Training images", calibration_view()),
        raw_scores(model, test, "Test images"),
    ]
    embedding, score, _ = (torch.cat(parts) for parts in zip(*passes, strict=True))
    refuse_nan(score, "image scores")
    threshold = float(getattr(model.post_processor, "image_threshold", float("nan")))
    pseudo = bool(model.classes.pseudo_labels)
    return judge(samples, embedding, score, calibration, model.classes.names, pseudo, threshold)


def judge(
    samples: pd.DataFrame,
    embedding: Tensor,
    score: Tensor,
    calibration: ClassCalibration,
    class_names: Sequence[str],
    pseudo: bool,
    f1_threshold: float,
) -> Scores:
    """Calibrate raw scores, and tell the category that is recognised in each image.

    Args:
        samples: N rows with the columns ``category`` and ``label_index`` (1 is anomalous), and the first level of the
            index the subset, "train" or "test".
        embedding: Their embeddings, of shape ``(N, D)``.
        score: Their raw scores, of shape ``(N, 1)``.
        calibration: A calibration of K classes.
        class_names: Their names, which are those of the categories, unless
        pseudo: they are pseudo-classes, which the model found by itself.
        f1_threshold: anomalib's image threshold on calibrated scores, or NaN.

    Returns:
        The scores.

    Raises:
        ValueError: If the model was trained on none of the categories.

    Example:
        >>> calibration = ClassCalibration()
        >>> calibration.fit(torch.eye(2), scores=torch.tensor([2.0, 6.0]), labels=torch.tensor([0, 1]))
        >>> samples = pd.DataFrame({"category": ["bolt", "nut"] * 2, "label_index": [0, 0, 0, 1]})
        >>> samples.index = pd.MultiIndex.from_product([["train", "test"], [0, 1]])
        >>> scores = judge(samples, torch.eye(2).repeat(2, 1), torch.ones(4, 1), calibration, ["bolt", "nut"], False, 1)
        >>> scores.images[["subset", "category", "anomalous", "recognised"]]
          subset category  anomalous recognised
        0  train     bolt      False       bolt
        1  train      nut      False        nut
        2   test     bolt      False       bolt
        3   test      nut       True        nut
    """
    calibration = deepcopy(calibration).cpu()
    anomaly_map = score[:, :, None, None]  # the calibration of a map is not needed
    own = calibration(embedding, anomaly_map, score)
    subset, category = samples.index.get_level_values(0), samples["category"].astype(str).to_numpy()
    index, in_training = own.class_index.numpy(), subset == "train"
    categories = list(class_names)
    if pseudo:
        categories = categories_of_pseudo_classes(categories, category[in_training], index[in_training])
    trained_on = np.isin(category, categories)
    if not trained_on[in_training].any():
        given = ", ".join(sorted(set(category)))
        msg = f"the model was trained on {', '.join(categories)}, but on none of the datamodule's categories: {given}"
        raise ValueError(msg)
    images = pd.DataFrame(
        {
            "subset": subset,
            "category": category,
            "anomalous": samples["label_index"].to_numpy() == 1,
            # The last name's index is that of an unknown product.
            "recognised": np.array([*categories, UNKNOWN])[index],
            "raw": score[:, 0].numpy(),
            "calibrated": own.score[:, 0].numpy(),
        }
    )
    for rate in LIMIT_RATES:
        calibration.false_alarm_rate = rate
        images[at_rate("calibrated", rate)] = calibration(embedding, anomaly_map, score).score[:, 0].numpy()
    kept = ~in_training | trained_on
    unit = F.normalize(embedding, dim=1).numpy()
    return Scores(
        images[kept].reset_index(drop=True), unit[kept], calibration.prototypes.numpy(), categories, f1_threshold
    )


def categories_of_pseudo_classes(names: Sequence[str], categories: np.ndarray, class_index: np.ndarray) -> list[str]:
    """Tell which category each pseudo-class of a model stands for.

    Args:
        names: The names of the K pseudo-classes.
        categories: The category of each of N training images, of shape ``(N,)``.
        class_index: The pseudo-class that the model recognises in each of them, of shape ``(N,)``, K for unknown.

    Returns:
        For each pseudo-class the category that most of its images have, leaving out categories that are mostly
        unknown, which were not trained on; its own name if it has no images.

    Example:
        >>> categories, class_index = np.array(["bolt", "nut", "nut", "pin"]), np.array([0, 0, 0, 2])
        >>> categories_of_pseudo_classes(["pseudo_0", "pseudo_1"], categories, class_index)
        ['nut', 'pseudo_1']
    """
    unknown = len(names)
    votes = pd.crosstab(categories, class_index).reindex(columns=range(unknown + 1), fill_value=0)
    known = votes[votes[unknown] <= votes.sum(axis=1) / 2]
    return [str(known[k].idxmax()) if known[k].any() else name for k, name in enumerate(names)]
