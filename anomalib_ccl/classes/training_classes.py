"""The classes of a model's training images."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from lightning.pytorch import LightningModule
from pandas import DataFrame
from sklearn.metrics import v_measure_score
from torch import Tensor, nn

from anomalib_ccl.classes.clustering import ClassCount, check_class_count, pseudo_classes
from anomalib_ccl.classes.labels import ClassLabels, class_names
from anomalib_ccl.data.passes import Passes
from anomalib_ccl.data.samples import samples_of
from anomalib_ccl.errors import InputError
from anomalib_ccl.model.patches import pooled_features
from anomalib_ccl.names import check_choice

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
        InputError: If the source is unknown, or the number not possible.
    """

    def __init__(self, source: ClassLabels, n_pseudo_classes: ClassCount) -> None:
        check_choice("class_labels", source, get_args(ClassLabels))
        check_class_count(n_pseudo_classes)
        self.names: list[str] = []
        self._source = source
        self._n_pseudo_classes = n_pseudo_classes
        self.pseudo_labels: dict[str, str] = {}
        self.index_of_image: dict[str, int] = {}

    def find(
        self, model: LightningModule, pre_processor: nn.Module | None, features: Callable[[Tensor], list[Tensor]]
    ) -> None:
        """Find the class of each training image of a model's Trainer.

        Args:
            model: The model, in training.
            pre_processor: Its pre-processor.
            features: Gives the features of pre-processed images of shape ``(B, 3, H, W)``, one map for each scale, if
                classes must be found by clustering.

        Raises:
            InputError: If the classes cannot be known, or not so many be made.
        """
        loader: Any = model.trainer.train_dataloader
        samples = samples_of(loader.dataset)
        name_of_image = self._known(samples, model.trainer)
        if name_of_image is not None:
            _warn_about_changes(self.names, sorted(set(name_of_image.values())))
        else:
            name_of_image = self._pseudo(model, pre_processor, features, samples)
        self.names = sorted(set(name_of_image.values()))
        index_of_name = {name: index for index, name in enumerate(self.names)}
        self.index_of_image = {path: index_of_name[name] for path, name in name_of_image.items()}

    def changed(self, trainer: Any) -> bool:  # noqa: ANN401  # Trainer has no type for its datamodule
        """Tell whether a training is about to begin on other classes than those known from an earlier one.

        Args:
            trainer: A Trainer whose datamodule has been set up.

        Returns:
            Whether there are other names now; False where classes are still to be found by clustering, or the Trainer
            was given loaders.
        """
        train_data = getattr(trainer.datamodule, "train_data", None)
        if train_data is None or not self.names:
            return False
        name_of_image = self._known(samples_of(train_data), trainer)
        return name_of_image is not None and {*self.names} != {*name_of_image.values()}

    def labels(self, paths: Sequence[str]) -> Tensor:
        """Look up the classes of training images.

        Args:
            paths: Their paths.

        Returns:
            Indices into :attr:`names`, of shape ``(B,)``.
        """
        return torch.tensor([self.index_of_image[path] for path in paths])

    def state_dict(self) -> dict[str, Any]:
        """Give the names, and the pseudo-classes that a resumed training must have again, as plain data."""
        return {"names": self.names, "pseudo_labels": self.pseudo_labels}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave."""
        self.names, self.pseudo_labels = state["names"], state["pseudo_labels"]

    def _known(self, samples: DataFrame, trainer: Any) -> dict[str, str] | None:  # noqa: ANN401
        return class_names(samples, self._source, getattr(trainer.datamodule, "category", ""))

    @torch.no_grad()
    def _pseudo(
        self,
        model: LightningModule,
        pre_processor: nn.Module | None,
        features: Callable[[Tensor], list[Tensor]],
        samples: DataFrame,
    ) -> dict[str, str]:
        """Cluster the training images, in one pass over them, on the first process for all."""
        paths = samples["image_path"].astype(str)
        k = self._n_pseudo_classes
        # On all processes, so that none waits for one that failed.
        check_class_count(k, len(paths))
        names = self.pseudo_labels
        if model.trainer.is_global_zero and not names.keys() >= set(paths):
            images = Passes.of_training(model, pre_processor)
            images.rank, images.processes = 0, 1
            # Half precision, so that 100,000 images take no more than memory has.
            found = [pooled_features(features(x.images)).half().cpu() for x in images("Features for pseudo-classes")]
            labels, silhouette = pseudo_classes(torch.cat(found).numpy(), k)
            width = len(str(labels.max()))
            names = {path: f"pseudo_{label:0{width}}" for path, label in zip(paths, labels, strict=True)}
            sizes = sorted(Counter(names.values()).items())
            logger.info(
                "Pseudo-classes found: %d, for %d training images, with silhouette %.2f (%s)",
                len(sizes),
                len(paths),
                silhouette,
                ", ".join(f"{name} {size}" for name, size in sizes),
            )
            if k != "auto" and len(sizes) < k:
                logger.warning("Only %d of %d pseudo-classes found: all other images are copies.", len(sizes), k)
            if "category" in samples:
                logger.info("V-measure of the pseudo-classes: %.3f", v_measure_score(samples["category"], labels))
        names = model.trainer.strategy.broadcast(names)
        if not names.keys() >= set(paths):
            msg = (
                "the training images differ between processes; give the datamodule a seed, so that it splits them alike"
            )
            raise InputError(msg)
        self.pseudo_labels = names
        return names


def _warn_about_changes(before: list[str], now: list[str]) -> None:
    if before and {*before} != {*now}:
        changes = {"added": sorted({*now} - {*before}), "gone": sorted({*before} - {*now})}
        logger.warning(
            "The training goes on from earlier weights with other products (%s). Classes, prototypes and limits are "
            "found anew; images of products that are gone will be called unknown.",
            "; ".join(f"{change}: {', '.join(names)}" for change, names in changes.items() if names),
        )
