"""What the network encodes the training images to, kept on disk: it is the same in every epoch."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize, Transform

from anomalib_ccl.data.samples import datasets_of
from anomalib_ccl.errors import InputError

# Targets and inputs of images, as a reconstruction network's ``encode`` gives them.
Encoded = tuple[list[Tensor], list[Tensor]]


class FeatureCache(Callback):
    """Keeps what each image, or each tile of one, is encoded to, from the first time they are asked for.

    They lie in one temporary file for each process, which is freed when the training ends, in whatever way: nothing
    of it is left even by a process that was killed. A resumed training begins with an empty one. Where the file is
    larger than the free memory, each step reads its images' features from the disk.

    Example:
        >>> def encode(images: Tensor) -> Encoded:
        ...     print("teacher runs on", len(images))
        ...     features = [images.mean(dim=1, keepdim=True), images[:, :, ::2, ::2]]
        ...     return features, features[1:]
        >>> images, cache = torch.rand(3, 3, 4, 4), FeatureCache(tempfile.gettempdir())
        >>> cache.open(encode(images[:1]), count=3)
        teacher runs on 1
        >>> _ = cache.features(images[:2], ["a.png", "b.png"], encode)
        teacher runs on 2
        >>> targets, inputs = cache.features(images[1:], ["b.png", "c.png"], encode)
        teacher runs on 1
        >>> torch.equal(targets[1], images[1:, :, ::2, ::2]), targets[1] is inputs[0]
        (True, True)
        >>> cache.close()
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._file: IO[bytes] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:  # noqa: ANN401
        """Open the file of a training."""
        dataset: Any = trainer.train_dataloader.dataset  # type: ignore[union-attr]
        for part in datasets_of(dataset):
            _refuse_random(getattr(part, "augmentations", None))
        tiling = pl_module.model.tiling
        first = trainer.train_dataloader.collate_fn([dataset[0]]).image  # type: ignore[union-attr]
        transform = getattr(pl_module.pre_processor, "transform", None)
        _refuse_random(transform)
        tile = tiling.cut(first if transform is None else transform(first))[0].to(pl_module.device)
        with trainer.precision_plugin.forward_context():  # so that the maps have the type of those in training
            encoded = pl_module.model.network.encode(tile.to(pl_module.dtype))
        self.open(encoded, len(dataset) * tiling.count * trainer.num_devices)

    def open(self, example: Encoded, count: int) -> None:
        """Open an empty file."""
        self.close()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115  # open until the training ends
        except OSError as error:
            msg = f"feature_cache={self.folder} cannot be written to: {error.strerror}; choose another folder"
            raise InputError(msg) from error
        self._row_of_image: dict[str, int] = {}
        targets, inputs = example
        places: dict[int, int] = {}
        self._places = [[places.setdefault(id(m), len(places)) for m in maps] for maps in (targets, inputs)]
        # With the channels last, as the teacher computes them, so that nothing is transposed.
        self._example = [m[0].movedim(0, -1).cpu() for m in self._different(example)]
        self._row_size = sum(m.nbytes for m in self._example)
        needed, free = count * self._row_size, shutil.disk_usage(self.folder).free
        if free < needed:
            self.close()
            msg = (
                f"feature_cache={self.folder} has {free / 1e6:.0f} MB free, but the features of all images take "
                f"{needed / 1e6:.0f} MB; free some space, choose another folder, or train without feature_cache"
            )
            raise InputError(msg)

    def features(self, images: Tensor, paths: Sequence[str], encode: Callable[[Tensor], Encoded]) -> Encoded:
        """Look up the features of images; those that are not there yet are encoded, and kept while a training lasts."""
        file: Any = self._file
        if file is None:
            return encode(images)
        maps = [m.new_empty((len(paths), *m.shape)) for m in self._example]
        missing = [index for index, path in enumerate(paths) if path not in self._row_of_image]
        if missing:
            for kept, encoded in zip(maps, self._different(encode(images[missing])), strict=True):
                kept[missing] = encoded.movedim(1, -1).cpu()
        for index, path in enumerate(paths):
            transfer = file.readinto if path in self._row_of_image else file.write
            file.seek(self._row_of_image.setdefault(path, len(self._row_of_image)) * self._row_size)
            for m in maps:
                transfer(m[index].view(torch.uint8).numpy())
        found = [m.movedim(-1, 1).to(images.device) for m in maps]
        targets, inputs = ([found[place] for place in places] for places in self._places)
        return targets, inputs

    def _different(self, encoded: Encoded) -> list[Tensor]:
        """List the maps, each that is a target and an input once."""
        targets, inputs = encoded
        by_place = dict(zip(chain(*self._places), chain(targets, inputs), strict=True))
        return [by_place[place] for place in range(len(by_place))]

    def close(self) -> None:
        """Free the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:  # noqa: ANN401
        """Free the file."""
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:  # noqa: ANN401
        """Free the file of a training that failed or was interrupted."""
        self.close()


def _refuse_random(transform: Transform | None) -> None:
    """Refuse all but what every pre-processor has: nothing tells which of torchvision's transforms are random."""
    transforms = transform.transforms if isinstance(transform, Compose) else [transform]
    if changing := [type(t).__name__ for t in transforms if not isinstance(t, Resize | Normalize | CenterCrop | None)]:
        msg = (
            f"feature_cache needs the same training images in each epoch, but {', '.join(changing)} may change them; "
            "take them away from the datamodule's augmentations (the second view has its own) or the pre-processor, or "
            "train without feature_cache"
        )
        raise InputError(msg)
