"""The same reading of images in prediction as in training, with anomalib's own tools too."""

from __future__ import annotations

import sys
import unicodedata
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib.data import ImageItem
from anomalib.data.predict import PredictDataset
from anomalib.data.utils import image as image_utils
from anomalib.data.utils import path as path_utils
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, default_collate

from anomalib_ccl.data.dataset import MultiCategoryDataset
from anomalib_ccl.data.files import images_in
from anomalib_ccl.data.ranges import PixelRanges
from anomalib_ccl.data.reading import is_deep, read_image
from anomalib_ccl.data.samples import collate_of, datasets_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray
    from torch import Tensor
    from torchvision.transforms.v2 import Transform

#: Where a checkpoint has the ranges.
CHECKPOINT_KEY = "pixel_ranges"


class FolderImages(PredictDataset):
    """anomalib's data set for prediction, which finds and reads images as :class:`MultiCategoryDataset` does.

    Args:
        path: An image, or a folder of images.
        transform: Transform of the images.
        image_size: Not used, as in anomalib.

    Attributes:
        ranges: Black and white of the images that the model was trained on by MultiCategory. ``None`` if it was not:
            images are then read as anomalib's datamodules read them.

    Raises:
        FileNotFoundError: If the path is not there, or has no images.
    """

    def __init__(
        self, path: str | Path, transform: Transform | None = None, image_size: int | tuple[int, int] = (256, 256)
    ) -> None:
        # Not anomalib's, which takes hidden files for images and leaves links to folders out.
        place = Path(path).absolute()
        if not place.exists():
            msg = f"there is no file or folder {place} to predict"
            raise FileNotFoundError(msg)
        self.image_filenames = images_in(place) if place.is_dir() else [place]
        if not self.image_filenames:
            msg = f"there is no image in the folder {place}"
            raise FileNotFoundError(msg)
        self.transform, self.image_size = transform, image_size
        self.ranges: PixelRanges | None = None

    def __getitem__(self, index: int) -> ImageItem:
        """Read an image.

        Raises:
            OSError: If it cannot be read; the message has the path.
        """
        path = self.image_filenames[index]
        try:
            if self.ranges is None:
                return super().__getitem__(index)
            image = read_image(path, self.ranges)
        except (OSError, ValueError) as error:
            msg = f"cannot read image {path}: {error}; repair or remove it"
            raise OSError(msg) from error
        return ImageItem(image=self.transform(image) if self.transform else image, image_path=str(path))


class ReadAsTrained(Callback):
    """Has every model that MultiCategory trained read all later images as those that it was trained on.

    The ranges of its images (:class:`~anomalib_ccl.data.ranges.PixelRanges`) become the model's ``pixel_ranges``, and
    a part of its checkpoints. A user's own ``DataLoader`` without a ``collate_fn`` gets that of its images.

    Example:
        >>> from anomalib.engine import Engine
        >>> engine = Engine(callbacks=[ReadAsTrained()])  # needless where the plugin is installed
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See to the images of a run before any worker begins to read them."""
        for loader in _loaders(trainer):
            if isinstance(loader, DataLoader) and loader.collate_fn is default_collate:
                loader.collate_fn = collate_of(loader.dataset) or default_collate
        _read_alike(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the ranges from the training images."""
        loader: Any = trainer.train_dataloader
        found = [data.ranges for data in datasets_of(loader.dataset) if isinstance(data, MultiCategoryDataset)]
        model: Any = pl_module
        model.pixel_ranges = found[0] if found else None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the ranges."""
        if (ranges := getattr(pl_module, "pixel_ranges", None)) is not None:
            checkpoint[CHECKPOINT_KEY] = asdict(ranges)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the ranges from a checkpoint."""
        model: Any = pl_module
        model.pixel_ranges = ranges_of(checkpoint)
        _read_alike(trainer, pl_module)


def ranges_of(checkpoint: dict[str, Any]) -> PixelRanges | None:
    """Find out how a model read its training images.

    Args:
        checkpoint: Its checkpoint.

    Returns:
        Black and white of its images; None if MultiCategory did not train it.

    Example:
        >>> ranges_of({"pixel_ranges": {"integers": (0, 4095), "floats": (0, 1)}}).integers
        (0, 4095)
    """
    kept = checkpoint.get(CHECKPOINT_KEY)
    return None if kept is None else PixelRanges(**kept)


def mend_anomalib() -> None:
    """Have anomalib take paths with letters of any script, and images of any depth.

    What it reads right is as it was: images of 8 bits, and floats from 0 to 255.
    """
    utils: Any = path_utils
    utils.contains_non_printable_characters = _has_control_characters
    own = image_utils.read_image
    for old, new in ((own, partial(_read_deep_too, own)), (PredictDataset, FolderImages)):
        name = old.__name__
        for module in [module for key, module in sys.modules.items() if key.startswith("anomalib.")]:
            if getattr(module, name, None) is old:
                setattr(module, name, new)


def _read_deep_too(own: Callable[..., Any], path: str | Path, as_tensor: bool = False) -> Tensor | NDArray:
    if is_deep(path):
        image = read_image(path, upright=False)
        if image.max() <= 1:
            return image if as_tensor else image.permute(1, 2, 0).numpy()
    return own(path, as_tensor)


def _has_control_characters(path: str | Path) -> bool:
    return any(unicodedata.category(character) == "Cc" for character in str(path))


def _loaders(trainer: Trainer) -> list[Any]:
    """The data loaders that a trainer was given; none where it was given a datamodule."""
    training: Any = trainer.fit_loop
    loops = (training, training.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop, trainer.predict_loop)
    # When they are made known as trainer.test_dataloaders and so on, workers are reading already.
    given = [loop._data_source.instance for loop in loops]
    flat = [loader for one in given for loader in (one if isinstance(one, list | tuple) else [one])]
    return [loader for loader in flat if hasattr(loader, "dataset")]


def read_alike(datasets: Iterable[Any], ranges: PixelRanges | None) -> None:
    """Have images read as those that a model was trained on.

    Args:
        datasets: Data sets, whatever a user has wrapped around them; those that others read stay as they are.
        ranges: Black and white of the images of the training; None changes nothing.
    """
    for dataset in [own for one in datasets for own in datasets_of(one)]:
        if ranges is not None and isinstance(dataset, MultiCategoryDataset | FolderImages):
            dataset.ranges = ranges


def _read_alike(trainer: Trainer, model: Any) -> None:  # noqa: ANN401
    """Have the images of a run read as those of the training, unless it is a training."""
    if trainer.state.fn == TrainerFn.FITTING:
        return
    subsets = [getattr(trainer.datamodule, f"{name}_data", None) for name in ("val", "test")]  # type: ignore[attr-defined]
    loaded = [loader.dataset for loader in _loaders(trainer)]
    read_alike([*subsets, *loaded], getattr(model, "pixel_ranges", None))
