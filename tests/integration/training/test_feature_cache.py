"""Training with the teacher's features kept on disk: the same losses, with less of the teacher's work."""

from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.pre_processing import PreProcessor
from lightning import Callback
from torchvision.transforms.v2 import Compose, RandomHorizontalFlip, Resize
from trainings import assert_calibrated_for_its_weights, ccl, data, engine

from anomalib_ccl import CCL
from anomalib_ccl.errors import InputError
from anomalib_ccl.training.feature_cache import FeatureCache

IMAGES, SEEN, EPOCHS = 36, 40, 2  # six categories of six images, in 5 batches of 8
SIX = ["brick", "grass", "gravel_coarse", "gravel_fine", "retina", "tissue"]


def open_files(folder: Path) -> list[str]:
    """The files of a folder that this process has open, whether they still have a name or not."""
    links = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [str(file) for file in links if file.is_relative_to(folder)]


class Watch(Callback):
    """Keep each step's loss, how many images the teacher was run on in each epoch, and the files in a folder.

    The learning rates are so low that a difference in the last bit, of a teacher that is run on smaller batches, stays
    one: at the paper's, chaos makes 1 % of it within 15 steps.
    """

    def __init__(self, folder: Path, break_off_in: int | None = None) -> None:
        self.folder, self.break_off_in = folder, break_off_in
        self.losses: list[float] = []
        self.encoded: Counter[int] = Counter()
        self.files: set[tuple[int, int]] = set()

    def setup(self, trainer: Any, pl_module: CCL, stage: str) -> None:
        def count(module: object, inputs: tuple[torch.Tensor], output: object) -> None:
            if pl_module.training:
                self.encoded[trainer.current_epoch] += len(inputs[0])

        pl_module.model.network.teacher.register_forward_hook(count)

    def on_train_start(self, trainer: Any, pl_module: CCL) -> None:
        (schedule,) = (config.scheduler for config in trainer.lr_scheduler_configs)
        schedule.base_lrs = [1e-6 for _ in schedule.base_lrs]
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = 1e-6

    def on_train_batch_end(self, trainer: Any, pl_module: CCL, outputs: Any, *args: Any) -> None:
        self.losses.append(outputs["loss"].item())
        named = len(list(self.folder.iterdir())) if self.folder.is_dir() else 0
        self.files.add((len(open_files(self.folder)), named))
        if trainer.current_epoch == self.break_off_in:
            raise RuntimeError("broken off")


def fit(root: Path, folder: Path, cache: Path | None, watch: Watch, **arguments: Any) -> CCL:
    images = data(root, SIX, train_batch_size=8, **arguments.pop("data", {}))
    precision = arguments.pop("precision", "32-true")
    model = ccl(feature_cache=cache, calibrate=False, **arguments)
    run = engine(folder, watch, max_epochs=EPOCHS, precision=precision, limit_val_batches=0)
    run.fit(model, datamodule=images)
    return model


@pytest.mark.parametrize(
    ("precision", "tolerance", "research"),
    [("bf16-mixed", 1e-2, {}), ("32-true", 1e-5, {"local_weight": 0})],
)
def test_losses_are_the_same_while_the_teacher_sees_each_image_once(
    sample_root: Path, tmp_path: Path, precision: str, tolerance: float, research: dict[str, float]
) -> None:
    folder = tmp_path / "cache"
    without, cached = Watch(folder), Watch(folder)
    fit(sample_root, tmp_path / "without", None, without, precision=precision, research=research)
    fit(sample_root, tmp_path / "cached", folder, cached, precision=precision, research=research)
    assert cached.losses == pytest.approx(without.losses, rel=tolerance)
    assert without.encoded == dict.fromkeys(range(EPOCHS), 2 * SEEN)
    # The first image once more, to learn the size of its features; then only the second views.
    assert cached.encoded == {0: 1 + IMAGES + SEEN, 1: SEEN}


def test_where_no_loss_needs_views_the_teacher_rests_from_the_second_epoch_on(
    sample_root: Path, tmp_path: Path
) -> None:
    watch = Watch(tmp_path / "cache")
    fit(sample_root, tmp_path / "run", tmp_path / "cache", watch, research={"local_weight": 0, "losses": "released"})
    assert watch.encoded == {0: 1 + IMAGES}


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({}, 2 * IMAGES),  # changed images, once for the levels and once for the limits
        ({"tiles": (1, 2)}, 5 * IMAGES),  # the same of two tiles each, and the tile that no step has drawn
        ({"recipe": "memory"}, IMAGES),  # once for the memory; for the limits they are there
    ],
)
def test_a_model_is_calibrated_by_what_the_cache_has_as_it_is_without_one(
    options: dict[str, Any], seen: int, sample_root: Path, tmp_path: Path
) -> None:
    images, encoded = data(sample_root, SIX), Counter[bool]()
    model = ccl(feature_cache=tmp_path / "cache", **{"memory": 20, **options})

    def count(module: object, inputs: tuple[torch.Tensor], output: object) -> None:
        encoded[model.training] += len(inputs[0])

    model.model.network.teacher.register_forward_hook(count)
    engine(tmp_path, max_epochs=1, limit_val_batches=0).fit(model, datamodule=images)
    assert encoded[False] == seen
    assert_calibrated_for_its_weights(model, images)


@pytest.mark.parametrize("break_off_in", [None, 1])
def test_file_has_no_name_and_is_freed_when_training_ends_or_fails(
    sample_root: Path, tmp_path: Path, break_off_in: int | None
) -> None:
    watch = Watch(tmp_path / "cache", break_off_in)
    with nullcontext() if break_off_in is None else pytest.raises(RuntimeError, match="broken off"):
        fit(sample_root, tmp_path / "run", tmp_path / "cache", watch)
    assert watch.files == {(1, 0)}
    assert open_files(tmp_path / "cache") == []


def test_what_a_cache_cannot_keep_or_a_folder_cannot_take_is_refused_before_the_first_step(
    sample_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    random = "needs the same training images in each epoch, but RandomHorizontalFlip may change them"
    changing = PreProcessor(Compose([Resize((64, 64)), RandomHorizontalFlip()]))
    for folder, arguments, message in (
        ("cache", {"data": {"train_augmentations": RandomHorizontalFlip()}}, random),
        ("cache", {"pre_processor": changing}, random),
        ("file/cache", {}, f"feature_cache={tmp_path}/file/cache cannot be written to: Not a directory; choose"),
    ):
        watch = Watch(tmp_path)
        with pytest.raises(InputError, match=message):
            fit(sample_root, tmp_path / "run", tmp_path / folder, watch, **arguments)
        assert watch.losses == []
    huge = torch.zeros(1).expand(1, 256, 10**6, 10**6)  # without a byte of memory
    message = rf"feature_cache={tmp_path} has \d+ MB free, but .* take 5120000000 MB; free some space, choose"
    with pytest.raises(InputError, match=message):
        FeatureCache(tmp_path).open(([huge], []), count=5)
    assert open_files(tmp_path) == []
