"""A trained model, and products that it does not know."""

import shutil
from pathlib import Path

import pytest
from anomalib.engine import Engine
from lightning import seed_everything

from anomalib_ccl import CCL, MultiCategory

CATEGORIES = ["brick", "grass", "retina"]
NEW = ["gravel_fine", "tissue"]


@pytest.fixture(scope="session")
def trained(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a memory; for reading only."""
    seed_everything(0)
    network = {"backbone": "test_efficientnet", "pre_trained": False, "image_size": (64, 64)}
    model = CCL(**network, recipe="recommended", memory=20, visualizer=False)
    root = tmp_path_factory.mktemp("trained")
    engine = Engine(max_epochs=2, default_root_dir=root, accelerator="cpu", enable_progress_bar=False)
    engine.fit(model, MultiCategory(root=sample_root, categories=CATEGORIES, train_batch_size=6, num_workers=0))
    return Path(engine.best_model_path)


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    """A copy of it in a folder of its own."""
    return Path(shutil.copy(trained, tmp_path / "model.ckpt"))


@pytest.fixture(scope="session")
def new_root(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The products that it does not know."""
    root = tmp_path_factory.mktemp("new")
    for category in NEW:
        shutil.copytree(sample_root / category, root / category)
    return root
