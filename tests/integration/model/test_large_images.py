"""A model that looks at images tile by tile: trained, saved, loaded, exported, with one score and one map."""

import subprocess
import sys
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime
import pytest
import torch
from anomalib.deploy import TorchInferencer
from anomalib.engine import Engine
from anomalib.pre_processing import PreProcessor
from lightning import seed_everything
from torch import Tensor
from torchvision.transforms.v2 import Resize

from anomalib_ccl import CCL, CCLInferencer, MultiCategory
from anomalib_ccl.model.torch_model import CCLModel

NETWORK: dict[str, Any] = {
    "backbone": "mobilenetv3_small_100",
    "pre_trained": False,
    "image_size": (32, 64),
    "tiles": [2, 2],
    "visualizer": False,
}
FIELDS = ["pred_score", "pred_label", "anomaly_map", "pred_mask"]
SINGLE_PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}
QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}


class Run(NamedTuple):
    """A trained model, its checkpoint, and the batches that its teacher saw in training."""

    model: CCL
    checkpoint: Path
    seen: list[tuple[int, ...]]


def make_data(root: Path) -> MultiCategory:
    data = {"train_batch_size": 4, "eval_batch_size": 4, "num_workers": 0}
    return MultiCategory(root=root, categories=["brick", "retina"], **data)


def trained(root: Path, folder: Path, epochs: int = 1, **arguments: Any) -> Run:
    seed_everything(0)
    model = CCL(**{**NETWORK, **arguments})
    seen: list[tuple[int, ...]] = []
    handle = model.model.network.teacher.register_forward_pre_hook(lambda _, x: seen.append(tuple(x[0].shape)))
    engine = Engine(max_epochs=epochs, default_root_dir=folder, **QUIET)
    engine.fit(model, make_data(root))
    handle.remove()
    return Run(model.eval(), Path(engine.best_model_path), seen)


@pytest.fixture(scope="module")
def run(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(sample_root, tmp_path_factory.mktemp("run"), recipe="recommended")


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Images of a camera, which are resized to the 56 × 112 pixels of the grid."""
    return torch.rand(2, 3, 90, 130, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def expected(run: Run, images: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode():
        predicted = run.model(images)
    assert predicted.anomaly_map.shape == (2, 1, 56, 112)
    assert predicted.pred_score.shape == (2, 1)
    return {name: getattr(predicted, name) for name in FIELDS}


def test_a_step_takes_a_tile_of_each_image_and_a_pass_a_batch_of_tiles(run: Run) -> None:
    steps, passes = [size for size in run.seen if size[0] == 8], [size for size in run.seen if size[0] != 8]
    assert steps == [(8, 3, 32, 64)] * 3  # of 12 images, with their second views
    # What is usual, the limits, and the validation on 12 images, in 4 tiles each.
    assert passes == [(4, 3, 32, 64)] * (3 * 3 * 4)


def test_one_product_is_recognised_in_each_image_and_what_is_usual_is_learnt_of_the_whole(run: Run) -> None:
    calibration = run.model.model.calibration
    assert run.model.classes.names == ["brick", "retina"]
    assert calibration.prototypes.shape[0] == 2
    assert calibration.usual.shape == (2, 1, 7, 14)
    assert run.model.known_limits().image_size == [56, 112]


def test_a_checkpoint_knows_its_tiles_and_no_loader_makes_its_images_smaller(
    run: Run, sample_root: Path, tmp_path: Path
) -> None:
    """The loader of a datamodule resizes too, and is set up before the checkpoint is read."""
    model = CCL(backbone=NETWORK["backbone"], image_size=(32, 32), visualizer=False)
    same = CCL(backbone=NETWORK["backbone"], visualizer=False, **{n: NETWORK[n] for n in ("image_size", "tiles")})
    engine = Engine(default_root_dir=tmp_path, **QUIET)
    del model.given["image_size"]  # as if it were the default, which would make them larger
    loaded = CCL.load_from_checkpoint(run.checkpoint)
    ways = [(run.model, None), (loaded, None), (model, run.checkpoint), (same, run.checkpoint)]
    own, *others = (engine.predict(way, datamodule=make_data(sample_root), ckpt_path=path) for way, path in ways)
    assert tuple(model.input_size) == tuple(loaded.input_size) == (56, 112)
    assert model.hparams["tiles"] == loaded.hparams["tiles"] == (2, 2)
    for batch, expected in [pair for other in others for pair in zip(other, own, strict=True)]:
        torch.testing.assert_close(batch.pred_score, expected.pred_score)
        torch.testing.assert_close(batch.anomaly_map, expected.anomaly_map)
        assert batch.explanation == expected.explanation


def test_other_tiles_than_the_checkpoints_are_refused(run: Run, sample_root: Path, tmp_path: Path) -> None:
    message = r"model\.ckpt was trained with tiles=\(2, 2\), not tiles=\(1, 1\)"
    with pytest.raises(ValueError, match=message):
        CCL.load_from_checkpoint(run.checkpoint, tiles=(1, 1))
    model = CCL(**{**NETWORK, "tiles": (1, 1)})
    with pytest.raises(ValueError, match=message):
        Engine(default_root_dir=tmp_path, **QUIET).test(
            model, datamodule=make_data(sample_root), ckpt_path=run.checkpoint
        )
    assert CCL.load_from_checkpoint(run.checkpoint, tiles=[2, 2]).model.tiling.count == 4


def test_one_tile_is_what_earlier_checkpoints_have(run: Run, tmp_path: Path) -> None:
    checkpoint = torch.load(run.checkpoint, weights_only=True)
    del checkpoint["hyper_parameters"]["tiles"]
    torch.save(checkpoint, tmp_path / "before.ckpt")
    assert CCL.load_from_checkpoint(tmp_path / "before.ckpt").model.tiling.count == 1
    CCL.load_from_checkpoint(tmp_path / "before.ckpt", tiles=[1, 1])
    with pytest.raises(ValueError, match=r"was trained with tiles=\(1, 1\), not tiles=\(1, 2\)"):
        CCL.load_from_checkpoint(tmp_path / "before.ckpt", tiles=[1, 2])


def test_exported_file_gives_what_the_engine_gives(
    run: Run, images: Tensor, expected: dict[str, Tensor], tmp_path: Path
) -> None:
    """In ONNX Runtime and in OpenVINO, for images of any size and of one."""
    path = run.model.to_onnx(tmp_path)
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    for batch in (images, images[:1]):
        outputs = dict(zip(names, session.run(None, {session.get_inputs()[0].name: batch.numpy()}), strict=True))
        for name in FIELDS:
            torch.testing.assert_close(torch.from_numpy(outputs[name]), expected[name][: len(batch)])
    for size in (None, (90, 130)):
        inferencer = CCLInferencer(path, "CPU", SINGLE_PRECISION, image_size=size)
        for index, image in enumerate(images):
            actual = inferencer.predict(image)
            for name in ("pred_score", "anomaly_map"):
                own = torch.from_numpy(getattr(actual, name))
                torch.testing.assert_close(own, expected[name][index : index + 1], rtol=1e-4, atol=1e-4)


def test_torch_export_gives_what_the_engine_gives(
    run: Run, images: Tensor, expected: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    prediction = TorchInferencer(run.model.to_torch(tmp_path), device="cpu").predict(images[0])
    torch.testing.assert_close(prediction.pred_score.view(1, 1), expected["pred_score"][:1])


def test_features_are_kept_for_each_tile_and_pseudo_classes_found_of_whole_images(
    sample_root: Path, tmp_path: Path
) -> None:
    """With the cache, the weights of three epochs become what they are without it."""
    options: dict[str, Any] = {"class_labels": "pseudo", "n_pseudo_classes": 2, "epochs": 3}
    plain = trained(sample_root, tmp_path / "plain", **options)
    cached = trained(sample_root, tmp_path / "cached", feature_cache=str(tmp_path), **options)
    assert len(plain.model.classes.names) == 2
    assert cached.model.classes.index_of_image == plain.model.classes.index_of_image
    weights = plain.model.model.projections.state_dict()
    for name, weight in cached.model.model.projections.state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-3, atol=1e-4)
    assert len([size for size in cached.seen if size[0] == 4]) > 0
    assert sum(size[0] for size in cached.seen) < sum(size[0] for size in plain.seen)


def test_a_pre_processor_that_does_not_fit_the_tiles_is_refused() -> None:
    with pytest.raises(ValueError, match=r"images of 101 × 112 pixels cannot be cut into tiles=\(2, 2\)"):
        CCL(**NETWORK, pre_processor=PreProcessor(Resize((101, 112))))
    CCL(**NETWORK, pre_processor=PreProcessor(Resize((56, 112))))


def test_the_command_line_takes_tiles_and_refuses_others_in_one_sentence(sample_root: Path, tmp_path: Path) -> None:
    anomalib = str(Path(sys.executable).parent / "anomalib")
    model = ["--model=CCL", "--model.pre_trained=false", "--model.tiles=[0, 2]"]
    command = [anomalib, "train", *model, "--data=MultiCategory", f"--data.root={sample_root}"]
    result = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert result.returncode == 1
    assert "error: tiles must be two whole numbers from 1 on, the rows and the columns, got (0, 2)" in result.stderr
    assert "Traceback" not in result.stderr


@torch.no_grad()
def _peaks(benchmarks: str) -> list[float]:
    """What 4 tiles add to this fresh process's peak of memory, 4 images of 16 tiles, and 4 images as a whole."""
    sys.path.append(benchmarks)
    from peak_memory import peak_mebibytes  # noqa: PLC0415

    arguments: dict[str, Any] = {"backbone": "resnet18", "pre_trained": False}
    plain, tiled = CCLModel(**arguments).eval(), CCLModel(**arguments, tiles=(4, 4)).eval()
    whole = torch.zeros(4, 3, *tiled.tiling.image_size((128, 128)))
    plain.score(whole[..., :32, :32])
    peaks = [peak_mebibytes()]
    for model, images in ((plain, whole[..., :128, :128]), (tiled, whole), (plain, whole)):
        model.score(images)
        peaks.append(peak_mebibytes())
    return [after - before for before, after in pairwise(peaks)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_tiles_take_the_memory_of_one_batch_of_them() -> None:
    benchmarks = str(Path(__file__).parents[2] / "benchmarks")
    with get_context("spawn").Pool(1) as pool:
        batch, tiles, whole = pool.apply(_peaks, (benchmarks,))
    assert tiles < batch + 10  # MiB; their maps
    assert whole > 5 * batch
