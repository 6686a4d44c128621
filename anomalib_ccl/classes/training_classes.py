"""The classes of a model's training images."""

import logging
from typing import Any, get_args

import torch
from anomalib.data import ImageBatch
from anomalib.models.components import AnomalibModule
from lightning.pytorch import Trainer
from torch import Tensor

from anomalib_ccl.classes.clustering import ClassCount, check_class_count
from anomalib_ccl.classes.labels import ClassLabels, class_names
from anomalib_ccl.classes.pseudo_labels import find_pseudo_labels
from anomalib_ccl.data.samples import samples_of

logger = logging.getLogger(__name__)


class TrainingClasses:
    """Which classes there are, and which training image is of which.

    Args:
        source: Where the class of an image comes from; see :func:`~anomalib_ccl.classes.labels.class_names`.
        n_pseudo_classes: Number of classes where they must be found by clustering, or ``"auto"``.

    Attributes:
        names: The names of the classes, sorted by a training, in the order of their indices; empty before :meth:`find`.
        index_of_image: The class of each training image, as an index into the names, by its path.
        pseudo_labels: The name of the class of each training image, by its path, if classes were found by clustering.

    Raises:
        ValueError: If the source is unknown, or the number not possible.
    """

    def __init__(self, source: ClassLabels, n_pseudo_classes: ClassCount) -> None:
        if source not in get_args(ClassLabels):
            msg = f"unknown class_labels {source!r}; choose one of {', '.join(get_args(ClassLabels))}"
            raise ValueError(msg)
        check_class_count(n_pseudo_classes)
        self.names: list[str] = []
        self._source = source
        self._n_pseudo_classes = n_pseudo_classes
        self.pseudo_labels: dict[str, str] = {}
        self.index_of_image: dict[str, int] = {}

    def find(self, model: AnomalibModule) -> None:
        """Find the class of each training image of a model's Trainer.

        Args:
            model: The model, whose ``model`` gives features of images if classes must be found by clustering.

        Raises:
            ValueError: If the classes cannot be known, or not so many be made.
        """
        name_of_image = self._known(model.trainer, model.trainer.train_dataloader)
        if name_of_image is not None:
            _warn_about_changes(self.names, sorted(set(name_of_image.values())))
        else:
            features: Any = model.model.features
            name_of_image = find_pseudo_labels(model, features, self._n_pseudo_classes, self.pseudo_labels)
            self.pseudo_labels = name_of_image
        self.names = sorted(set(name_of_image.values()))
        index_of_name = {name: index for index, name in enumerate(self.names)}
        self.index_of_image = {path: index_of_name[name] for path, name in name_of_image.items()}

    def changed(self, trainer: Trainer) -> bool:
        """Tell whether a training is about to begin on other classes than those known from an earlier one.

        Args:
            trainer: A Trainer that has its data, but has not begun to load them.

        Returns:
            Whether there are other names now; False where classes are still to be found by clustering.
        """
        name_of_image = self._known(trainer, trainer.fit_loop._data_source.dataloader())
        return name_of_image is not None and bool(self.names) and {*self.names} != {*name_of_image.values()}

    def _known(self, trainer: Trainer, loader: Any) -> dict[str, str] | None:  # noqa: ANN401
        category = getattr(trainer.datamodule, "category", "")  # type: ignore[attr-defined]
        return class_names(samples_of(loader.dataset), self._source, category)

    def labels(self, batch: ImageBatch) -> Tensor:
        """Look up the classes of training images.

        Args:
            batch: Training images with their paths.

        Returns:
            Indices into :attr:`names`, of shape ``(B,)``.
        """
        return torch.tensor([self.index_of_image[path] for path in batch.image_path or ()])

    def state_dict(self) -> dict[str, Any]:
        """Give the names, and the pseudo-classes that a resumed training must have again, as plain data."""
        return {"names": self.names, "pseudo_labels": self.pseudo_labels}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave.

        Args:
            state: The names and the pseudo-classes.
        """
        self.names, self.pseudo_labels = state["names"], state["pseudo_labels"]


def _warn_about_changes(before: list[str], now: list[str]) -> None:
    if before and {*before} != {*now}:
        changes = {"added": sorted({*now} - {*before}), "gone": sorted({*before} - {*now})}
        logger.warning(
            "The training goes on from earlier weights with other products (%s). Classes, prototypes and limits are "
            "found anew; images of products that are gone will be called unknown.",
            "; ".join(f"{change}: {', '.join(names)}" for change, names in changes.items() if names),
        )
