"""A recipe is the options that it names, from the training to the exported file."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import openvino
import pytest
import torch
from anomalib.data.utils import read_image
from anomalib.engine import Engine
from lightning import seed_everything
from torch.nn import functional as F

from anomalib_ccl import CCL, MultiCategory

NETWORK: dict[str, Any] = {
    "backbone": "mobilenetv3_small_100",
    "pre_trained": False,
    "image_size": (64, 64),
    "visualizer": False,
}
RECOMMENDED: dict[str, Any] = {
    "skip": True,
    "anomaly_map": "refined",
    "subtract_usual": True,
    "global_weight": 0.1,
    "schedule": "cosine",
}


def trained(sample_root: Path, folder: Path, **options: Any) -> tuple[CCL, Engine]:
    seed_everything(0)
    model = CCL(**NETWORK, **options)
    engine = Engine(max_epochs=1, default_root_dir=folder, accelerator="cpu", enable_progress_bar=False)
    engine.fit(model, MultiCategory(root=sample_root, categories=["brick", "retina"], num_workers=0))
    return model.eval(), engine


@pytest.fixture(scope="module")
def recommended(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[CCL, Engine]:
    return trained(sample_root, tmp_path_factory.mktemp("recommended"), recipe="recommended")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_the_recommended_recipe_is_the_options_that_it_names(
    recommended: tuple[CCL, Engine], sample_root: Path, images: torch.Tensor, tmp_path: Path
) -> None:
    spelt_out, _ = trained(sample_root, tmp_path, **RECOMMENDED)
    for ours, theirs in zip(recommended[0](images), spelt_out(images), strict=True):
        assert torch.equal(ours, theirs)
    assert recommended[0].model.calibration.usual.shape == (2, 1, 8, 8)


def test_what_is_taken_off_is_of_the_training_images_as_they_are(
    recommended: tuple[CCL, Engine], sample_root: Path
) -> None:
    model = deepcopy(recommended[0])
    learnt, model.model.calibration.usual = model.model.calibration.usual, torch.empty(0)
    files = sorted((sample_root / "retina/train/good").iterdir())
    photographs = torch.stack([read_image(path, as_tensor=True) for path in files])
    with torch.inference_mode():
        raw = model.model.score(model.pre_processor.transform(photographs)).anomaly_map
    blocks = F.avg_pool2d(raw.mean(dim=0, keepdim=True), 8)
    torch.testing.assert_close(learnt[1:], 0.7 * (blocks - blocks.min()), rtol=1e-3, atol=1e-3)


def test_an_option_that_is_given_wins_over_the_recipe() -> None:
    model = CCL(**NETWORK, recipe="recommended", skip=False, global_weight=0.0)
    assert not model.model.skip
    assert not model.loss.compares_views
    assert model.model.anomaly_map == "refined"


@pytest.mark.parametrize("way", ["load_from_checkpoint", "trainer"])
def test_a_checkpoint_knows_its_recipe(
    way: str, recommended: tuple[CCL, Engine], images: torch.Tensor, sample_root: Path, tmp_path: Path
) -> None:
    model, engine = recommended
    if way == "trainer":
        loaded = CCL(visualizer=False)
        data = MultiCategory(root=sample_root, categories=["brick"], num_workers=0)
        quiet = Engine(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
        quiet.predict(loaded, datamodule=data, ckpt_path=engine.best_model_path)
    else:
        loaded = CCL.load_from_checkpoint(engine.best_model_path, visualizer=False)
    for ours, theirs in zip(loaded.eval()(images), model(images), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="was trained with recipe='recommended', not recipe='paper'"):
        CCL.load_from_checkpoint(engine.best_model_path, recipe="paper")
    with pytest.raises(ValueError, match="was trained with skip=True, not skip=False"):
        CCL.load_from_checkpoint(engine.best_model_path, skip=False)


@pytest.mark.parametrize("given", [{}, {"global_weight": 0.5}])
def test_a_training_that_goes_on_follows_the_recipe_of_its_checkpoint(
    given: dict[str, float], recommended: tuple[CCL, Engine], sample_root: Path, tmp_path: Path
) -> None:
    model = CCL(**NETWORK, **given)
    engine = Engine(max_epochs=2, default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
    data = MultiCategory(root=sample_root, categories=["brick", "retina"], num_workers=0)
    engine.fit(model, data, ckpt_path=recommended[1].best_model_path)
    assert model.loss.global_weight == given.get("global_weight", 0.1)
    assert isinstance(model.lr_schedulers(), torch.optim.lr_scheduler.CosineAnnealingLR)


def test_the_exported_model_gives_the_scores_of_the_engine(
    recommended: tuple[CCL, Engine], images: torch.Tensor, tmp_path: Path
) -> None:
    model, _ = recommended
    path = model.to_openvino(tmp_path)
    compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    exported = compiled(images.numpy())
    with torch.inference_mode():
        expected = model(images)
    torch.testing.assert_close(torch.from_numpy(exported["pred_score"]), expected.pred_score, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.from_numpy(exported["anomaly_map"]), expected.anomaly_map, rtol=1e-3, atol=1e-3)


def test_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown recipe 'best'; choose one of paper, recommended"):
        CCL(**NETWORK, recipe="best")
