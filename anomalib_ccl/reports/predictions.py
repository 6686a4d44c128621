"""What was predicted for each image, as a row of a CSV file, and what is known of the images before."""

import csv
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from anomalib.data import ImageBatch
from anomalib.data.utils import LabelName
from anomalib.post_processing import PostProcessor
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import Dataset

from anomalib_ccl.data.samples import datasets_of
from anomalib_ccl.model.torch_model import CCLModel

_DEFECTIVE = {int(LabelName.NORMAL): False, int(LabelName.ABNORMAL): True}


@runtime_checkable
class RecognisesProducts(Protocol):
    """A model that recognises the product in an image: in its batches, ``explanation`` holds names of classes."""

    model: CCLModel
    post_processor: nn.Module | None

    @property
    def class_names(self) -> list[str]:
        """The names of its K classes."""


class _Known(NamedTuple):
    """What a data set says of an image; ``number`` is None if a user has wrapped that data set."""

    number: int | None = None
    category: str = ""
    defective: bool | None = None


class KnownImages:
    """What data sets say of their images, and the places of their heatmaps."""

    def __init__(self, datasets: Iterable[Dataset]) -> None:
        self._known: dict[str, _Known] = {}
        folders: dict[str, set[Path]] = defaultdict(set)
        for given, dataset in [(one, part) for one in datasets for part in datasets_of(one)]:
            samples = getattr(dataset, "samples", None)
            if samples is None:
                folders[""] |= {_absolute(path).parent for path in getattr(dataset, "image_filenames", ())}
                continue
            names = samples.get("category", [getattr(dataset, "category", None) or ""] * len(samples))
            columns = zip(samples["image_path"], names, samples["label_index"], strict=True)
            for number, (path, name, label) in enumerate(columns):
                known = _Known(number if dataset is given else None, str(name), _DEFECTIVE.get(int(label)))
                self._known[str(path)] = known
                # The last folder is kept, which names the defect, also where all images are in one.
                folders[known.category].add(_absolute(path).parent.parent)
        self._roots = {name: os.path.commonpath(paths) for name, paths in folders.items() if paths}

    def of(self, path: str | None, label: bool | None = None) -> _Known:
        """Look up an image; of one that no data set names, only the label is known."""
        return self._known.get(path or "", _Known(defective=label))

    def place(self, path: str) -> Path:
        """Say where the heatmap of an image goes, a place that it shares with no other."""
        name, absolute = self.of(path).category, _absolute(path)
        root = self._roots.get(name, absolute.anchor)
        place = name / absolute.relative_to(root if absolute.is_relative_to(root) else absolute.anchor)
        return place if place.suffix.lower() in {".png", ".jpg", ".jpeg"} else place.with_name(f"{place.name}.png")


def loaded(loaders: object) -> list[Dataset]:
    """Find the data sets of a trainer's loaders."""
    flat = CombinedLoader(loaders, "sequential").flattened
    return [loader.dataset for loader in flat if hasattr(loader, "dataset")]


def _absolute(path: str | Path) -> Path:
    """The absolute path, in which links keep names of their own."""
    return Path(os.path.abspath(path))  # noqa: PTH100


class Prediction(NamedTuple):
    """What was predicted for an image, and what is known of it; None where there is no such thing.

    Attributes:
        path: The image, as its data set names it.
        category: The category that it is of, as the data set says.
        product: The class that a :class:`RecognisesProducts` model takes it for, or ``unknown``.
        score: How anomalous it is, in [0, 1] once the model is trained.
        threshold: The largest score of a normal image, on the scale of the score: 0.5 unless the post-processor's
            ``image_sensitivity`` says otherwise.
        verdict: ``anomalous`` if the score is greater than the threshold, else ``normal``: the model's ``pred_label``.
        defective: Whether it is anomalous in truth, as the data set says.
    """

    path: str | None = None
    category: str | None = None
    product: str | None = None
    score: np.floating | None = None
    threshold: np.floating | None = None
    verdict: str | None = None
    defective: bool | None = None

    def outcome(self) -> str:
        """Say in words how verdict and truth agree.

        Example:
            >>> Prediction(verdict="normal", defective=True).outcome()
            'defective, missed'
        """
        if self.defective is None or self.verdict is None:
            return self.verdict or ""
        if self.defective:
            return "defective, found" if self.verdict == "anomalous" else "defective, missed"
        return "false alarm" if self.verdict == "anomalous" else "normal"


def predictions(model: LightningModule, batch: ImageBatch, images: KnownImages) -> Iterator[Prediction]:
    """Take what was predicted from a batch."""
    missing = [None] * len(batch)
    paths = batch.image_path or missing
    # Other models explain themselves in prose.
    products = (batch.explanation if isinstance(model, RecognisesProducts) else None) or missing
    scores = missing if batch.pred_score is None else _numbers(batch.pred_score)
    labels = missing if batch.pred_label is None else batch.pred_label.flatten().tolist()
    truth = missing if batch.gt_label is None else batch.gt_label.flatten().tolist()
    threshold = _threshold(model) if batch.pred_score is not None else None
    for path, product, score, label, true in zip(paths, products, scores, labels, truth, strict=True):
        verdict = None if label is None else ("anomalous" if label else "normal")
        known = images.of(path, None if true is None else bool(true))
        yield Prediction(path, known.category, product, score, threshold, verdict, known.defective)


def _threshold(model: LightningModule) -> np.floating | None:
    """The number that the post-processor compares scores with."""
    post_processor = getattr(model, "post_processor", None)
    if not isinstance(post_processor, PostProcessor) or not post_processor.enable_thresholding:
        return None
    return _numbers(post_processor.normalized_image_threshold)[0]


def _numbers(tensor: Tensor) -> list[np.floating]:
    """The numbers, in numpy's single precision, which prints as few digits as distinguish two of them."""
    return list(tensor.flatten().float().cpu().numpy())


class PredictionsFile:
    """A CSV file with a row for each image, to which several processes may write; it holds what was added at once."""

    def __init__(self, path: Path, begin: bool = False) -> None:
        # Names that are not UTF-8 are written with escapes: all of the file can be read.
        self._file = path.open("w" if begin else "a", newline="", encoding="utf-8", errors="backslashreplace")
        if begin:
            self.add([Prediction._fields])

    def add(self, rows: Iterable[Iterable[object]]) -> None:
        """Add rows, each a :class:`Prediction`."""
        csv.writer(self._file).writerows(rows)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
