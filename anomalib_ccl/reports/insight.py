"""What a calibrated model knows of its products: a table and three pictures, from one pass over the test images."""

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from anomalib_ccl.data.multi_category import MultiCategory, share_ranges
from anomalib_ccl.data.reading import PixelRanges
from anomalib_ccl.errors import InputError
from anomalib_ccl.metrics.ranking import ranking_metrics
from anomalib_ccl.model.limits import limits_at
from anomalib_ccl.reports.pictures import UNKNOWN, embedding_picture, recognition_picture, score_picture
from anomalib_ccl.reports.predictions import RecognisesProducts
from anomalib_ccl.reports.table import figures_table

# False-alarm rates of the limits at which the table has figures, by the end of their columns' names.
_RATES = {"1": 0.01, "5": 0.05, "10": 0.1}
_HEADINGS = {
    "images": "images",
    "image_AUROC_raw": "AUROC\nraw",
    "image_AUROC_calibrated": "AUROC\ncalib.",
    "class_accuracy": "recog-\nnised",
    "unknown": "un-\nknown",
    **{
        f"{kind}_{end}": f"{end} %\n{short}"
        for end in _RATES
        for kind, short in (("false_alarms", "false"), ("detected", "found"))
    },
}


class InsightModel(RecognisesProducts, Protocol):
    """What is needed of :class:`~anomalib_ccl.CCL`."""

    pixel_ranges: PixelRanges | None
    pre_processor: nn.Module | None

    @property
    def device(self) -> torch.device:
        """Where its weights are."""

    def eval(self) -> object:
        """Put it into eval mode."""


class Scores(NamedTuple):
    """What a model makes of N test images."""

    # category, anomalous, recognised (a category or "unknown"), the score before calibration, raw, and after it,
    # calibrated (1 is the limit), and calibrated_1, _5 and _10 with limits for 1, 5 and 10 % of false alarms
    images: pd.DataFrame
    embeddings: np.ndarray  # (N, D), L2-normalised
    prototypes: np.ndarray  # (K, D), L2-normalised
    classes: list[str]  # the category that each of the K classes stands for


def insight(model: InsightModel, datamodule: MultiCategory, output: Path) -> None:
    """Write ``calibration.csv``, ``embedding.png``, ``scores.png`` and ``classes.png``, and print the table.

    Args:
        model: A calibrated :class:`~anomalib_ccl.CCL`.
        datamodule: Whose test images are scored.
        output: Folder to write into.

    Raises:
        InputError: If the model is not calibrated, or was trained on none of the categories.
    """
    output.mkdir(parents=True, exist_ok=True)
    scores = collect_scores(model, datamodule)
    figures = calibration_figures(scores)
    figures.to_csv(output / "calibration.csv", index=False)
    pictures = {
        "embedding": embedding_picture(scores.images, scores.embeddings, scores.prototypes, scores.classes),
        "scores": score_picture(scores.images),
        "classes": recognition_picture(scores.images),
    }
    for name, picture in pictures.items():
        picture.savefig(output / f"{name}.png", dpi=150, bbox_inches="tight")
    Console().print(
        figures_table(
            "Products recognised, and alarms at the model's own limits (%)",
            _HEADINGS,
            figures,
            2,
            "false: alarms among normal images; found: among defective ones, at limits for 1, 5 and 10 %\n"
            "pooled: all images together; one threshold for all fits calibrated scores better than raw ones",
        )
    )
    print(f"Written to {output}: calibration.csv, {', '.join(f'{name}.png' for name in pictures)}")


@torch.no_grad()
def collect_scores(model: InsightModel, datamodule: MultiCategory) -> Scores:
    """Score the test images."""
    calibration = model.model.calibration
    if not calibration.is_calibrated:
        msg = "this model is not calibrated: train it to its end with calibrate=True, or recalibrate it"
        raise InputError(msg)
    datamodule.prepare_data()
    datamodule.setup()
    share_ranges(datamodule, model.pixel_ranges)
    loader = datamodule.test_dataloader()
    transform = getattr(model.pre_processor, "transform", None)
    limits = {end: limits_at(calibration.quantiles, rate) for end, rate in _RATES.items()}
    model.eval()
    frames, embeddings = [], []
    for batch in tqdm(loader, "Test images"):
        images = batch.image.to(model.device)
        found = model.model(transform(images) if transform else images)
        raw, index = found.raw_score.flatten(), found.class_index.flatten()
        columns = {"raw": raw, "calibrated": found.pred_score.flatten(), "index": index}
        columns |= {f"calibrated_{end}": raw / limit[index] for end, limit in limits.items()}
        frames.append(pd.DataFrame({name: x.cpu().numpy() for name, x in columns.items()}, index=batch.image_path))
        embeddings.append(F.normalize(found.embedding.float(), dim=1).cpu())

    frame = pd.concat(frames)
    samples = loader.dataset.samples.set_index("image_path").loc[frame.index]
    frame = frame.assign(category=samples["category"].astype(str), anomalous=samples["label_index"] == 1)
    classes = classes_as_categories(model.class_names, frame["category"], frame["index"])
    if not set(classes) & set(frame["category"]):
        given = ", ".join(sorted(set(frame["category"])))
        msg = f"the model was trained on {', '.join(classes)}, but on none of the datamodule's categories: {given}"
        raise InputError(msg)
    frame["recognised"] = np.array([*classes, UNKNOWN])[frame.pop("index")]
    prototypes = F.normalize(calibration.prototypes.float(), dim=1).cpu().numpy()
    return Scores(frame.reset_index(drop=True), torch.cat(embeddings).numpy(), prototypes, classes)


def classes_as_categories(names: list[str], categories: pd.Series, index: pd.Series) -> list[str]:
    """Say which category each class of a model stands for: a pseudo-class for that of most of its images."""
    if not all(name.startswith("pseudo_") for name in names):
        return list(names)
    most = categories.groupby(index.to_numpy()).agg(lambda own: own.mode()[0])
    return [str(most.get(k, name)) for k, name in enumerate(names)]


def calibration_figures(scores: Scores) -> pd.DataFrame:
    """Compute the figures of each category, and those of all that the model was trained on."""
    known = scores.images["category"].isin(scores.classes)
    expected = scores.images["category"].where(known, UNKNOWN)
    images = scores.images.assign(right=scores.images["recognised"] == expected)
    rows = pd.DataFrame({"category": name, **_figures(own)} for name, own in images.groupby("category"))
    of_known = rows[rows["category"].isin(scores.classes)].drop(columns="category")
    counts = of_known[["normal_images", "anomalous_images"]].sum()
    mean = {"category": "mean", **of_known.mean(), **counts}
    pooled = {"category": "pooled", **_figures(images[known])}
    return pd.concat([rows, pd.DataFrame([mean, pooled])], ignore_index=True)


def _figures(images: pd.DataFrame) -> dict[str, float]:
    """The figures of some images."""
    normal, anomalous = images[~images["anomalous"]], images[images["anomalous"]]
    row: dict[str, float] = {"normal_images": len(normal), "anomalous_images": len(anomalous)}
    for score in ("raw", "calibrated"):
        row[f"image_AUROC_{score}"] = ranking_metrics(images["anomalous"], images[score])["AUROC"]
    row |= {"class_accuracy": images["right"].mean(), "unknown": (images["recognised"] == UNKNOWN).mean()}
    for end in _RATES:
        row[f"false_alarms_{end}"] = (normal[f"calibrated_{end}"] > 1).mean()
        row[f"detected_{end}"] = (anomalous[f"calibrated_{end}"] > 1).mean()
    return row
