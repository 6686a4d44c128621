"""Training with the teacher's features kept on disk: the same losses, with less of the teacher's work."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.engine import Engine
from lightning import Callback, seed_everything
from torchvision.transforms.v2 import RandomHorizontalFlip

from anomalib_ccl import CCL, MultiCategory
from anomalib_ccl.training.feature_cache import FeatureCache

IMAGES, SEEN = 36, 40  # six categories of six images, in 5 batches of 8


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
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = 1e-6

    def on_train_batch_end(self, trainer: Any, pl_module: CCL, outputs: Any, *args: Any) -> None:
        self.losses.append(outputs["loss"].item())
        named = len(list(self.folder.iterdir())) if self.folder.is_dir() else 0
        self.files.add((len(open_files(self.folder)), named))
        if trainer.current_epoch == self.break_off_in:
            raise RuntimeError("broken off")


def make_model(cache: Path | None, **kwargs: Any) -> CCL:
    seed_everything(0)
    return CCL(
        "mobilenetv3_small_100",
        pre_trained=False,
        image_size=(64, 64),
        feature_cache=cache,
        visualizer=False,
        **kwargs,
    )


def fit(model: CCL, root: Path, folder: Path, *callbacks: Callback, precision: Any = None, **kwargs: Any) -> None:
    data = MultiCategory(root=root, train_batch_size=8, num_workers=0, **kwargs.pop("data", {}))
    engine = Engine(
        callbacks=list(callbacks),
        max_epochs=3,
        default_root_dir=folder,
        accelerator="cpu",
        precision=precision,
        enable_progress_bar=False,
    )
    engine.fit(model, datamodule=data, **kwargs)


@pytest.mark.parametrize(
    ("precision", "tolerance", "weights"),
    [("32-true", 1e-5, {}), ("bf16-mixed", 1e-2, {}), ("32-true", 1e-5, {"local_weight": 0})],
)
def test_losses_are_the_same_while_the_teacher_sees_each_image_once(
    sample_root: Path, tmp_path: Path, precision: str, tolerance: float, weights: dict[str, float]
) -> None:
    folder = tmp_path / "cache"
    without, cached = Watch(folder), Watch(folder)
    fit(make_model(None, **weights), sample_root, tmp_path / "without", without, precision=precision)
    fit(make_model(folder, **weights), sample_root, tmp_path / "cached", cached, precision=precision)
    assert cached.losses == pytest.approx(without.losses, rel=tolerance)
    assert without.encoded == dict.fromkeys(range(3), 2 * SEEN)
    # The first image once more, to learn the size of its features; then only the second views.
    assert cached.encoded == {0: 1 + IMAGES + SEEN, 1: SEEN, 2: SEEN}


@pytest.mark.parametrize("without_views", [{"global_weight": 0}, {"losses": "released"}])
def test_where_no_loss_needs_views_the_teacher_rests_from_the_second_epoch_on(
    sample_root: Path, tmp_path: Path, without_views: dict[str, Any]
) -> None:
    watch = Watch(tmp_path / "cache")
    fit(make_model(tmp_path / "cache", local_weight=0, **without_views), sample_root, tmp_path / "run", watch)
    assert watch.encoded == {0: 1 + IMAGES}


def test_file_has_no_name_and_is_freed_when_training_ends_or_fails(sample_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    for break_off_in in (None, 1):
        watch = Watch(folder, break_off_in)
        model = make_model(folder)
        if break_off_in is None:
            fit(model, sample_root, tmp_path / "run", watch)
        else:
            with pytest.raises(RuntimeError, match="broken off"):
                fit(model, sample_root, tmp_path / "run", watch)
        assert watch.files == {(1, 0)}
        assert open_files(folder) == []


def test_training_broken_off_resumes_with_an_empty_cache(sample_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    whole, broken, resumed = Watch(folder), Watch(folder, break_off_in=1), Watch(folder)
    fit(make_model(folder), sample_root, tmp_path / "whole", whole)
    with pytest.raises(RuntimeError, match="broken off"):
        fit(make_model(folder), sample_root, tmp_path / "broken", broken)
    (checkpoint,) = (tmp_path / "broken").rglob("model.ckpt")
    fit(make_model(folder), sample_root, tmp_path / "resumed", resumed, ckpt_path=checkpoint)
    assert resumed.losses == pytest.approx(whole.losses[SEEN // 8 :], rel=1e-6)
    assert resumed.encoded[2] == SEEN


def test_random_augmentations_are_refused(sample_root: Path, tmp_path: Path) -> None:
    data = {"train_augmentations": RandomHorizontalFlip()}
    message = "feature_cache needs the same training images in each epoch, but RandomHorizontalFlip may change them"
    with pytest.raises(ValueError, match=message):
        fit(make_model(tmp_path / "cache"), sample_root, tmp_path / "run", data=data)


def test_folder_that_cannot_be_made_stops_a_training_before_it_starts(sample_root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    model = make_model(tmp_path / "file/cache")
    message = f"feature_cache={tmp_path}/file/cache cannot be written to: Not a directory; choose another folder"
    with pytest.raises(OSError, match=message):
        fit(model, sample_root, tmp_path / "run")
    assert not hasattr(model, "_second_view")


def test_folder_without_room_for_all_features_is_named_with_the_way_out(tmp_path: Path) -> None:
    huge = torch.zeros(1).expand(1, 256, 10**6, 10**6)  # without a byte of memory
    message = rf"feature_cache={tmp_path} has \d+ MB free, but .* take 5120000000 MB; free some space, choose"
    with pytest.raises(OSError, match=message):
        FeatureCache(tmp_path).open(([huge], []), count=5)
    assert open_files(tmp_path) == []
