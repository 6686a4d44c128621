"""Small data sets that the tests share."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
from forked import Forked
from noise import write_images
from PIL import Image

from anomalib_ccl.data import make_sample_dataset

# The tests need no hub, and without a connection would wait a minute for each network that asks it for weights: here,
# where the variable has been read already, and in the commands that tests run.
huggingface_hub.constants.HF_HUB_OFFLINE = True
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def forks_that_train() -> None:
    """Begin with a backward pass: the first one after an export starts threads, after which no fork can train."""
    import torch  # noqa: PLC0415  # heavy, and not for the other modules that use this one

    torch.zeros(1, requires_grad=True).sum().backward()


@pytest.fixture(scope="session")
def sample_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample data set, 64 px and with few images, for reading only.

    In each of the six categories: 6 training images, 2 normal and 4 defective test images.
    """
    root = tmp_path_factory.mktemp("data") / "sample"
    return make_sample_dataset(root, size=64, train=6, test_good=2, per_defect=1)


@pytest.fixture(scope="session")
def run() -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """``run("anomalib", "train", …, cwd=FOLDER, env=None, timeout=300, fresh=False)``; see :class:`forked.Forked`."""
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    forked = Forked()
    yield forked.run
    forked.close()


@pytest.fixture(scope="session")
def anomalib(run: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``anomalib("train", …, cwd=FOLDER)``, as above."""
    return partial(run, "anomalib")


@pytest.fixture(scope="session")
def make_category() -> Callable[..., Path]:
    """``make_category(root, name, train=4, good=2, bad=2, size=32)``: a category in MVTec AD's layout.

    The images are noise, the defect is called ``bad``. Returns the folder of the category.
    """

    def make(root: Path, name: str, train: int = 4, good: int = 2, bad: int = 2, size: int = 32) -> Path:
        folder = Path(root) / name
        write_images(folder / "train" / "good", train, size)
        write_images(folder / "test" / "good", good, size)
        write_images(folder / "test" / "bad", bad, size)
        write_images(folder / "ground_truth" / "bad", bad, size, "_mask.png", "L")
        return folder

    return make


@pytest.fixture
def two_categories(tmp_path: Path, make_category: Callable[..., Path]) -> Path:
    make_category(tmp_path / "set", "bottle")
    make_category(tmp_path / "set", "cable")
    return tmp_path / "set"


@pytest.fixture(scope="session")
def product_names() -> list[str]:
    """Products of the trained model below, with letters that XML and JSON escape."""
    return ["brick", "retina", 'tissue & "ink", <5 mm']


@pytest.fixture(scope="session")
def products(product_names: list[str], sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of ``product_names``, for reading only."""
    root = tmp_path_factory.mktemp("products")
    for source, name in zip(("brick", "retina", "tissue"), product_names, strict=True):
        shutil.copytree(sample_root / source, root / name)
    return root


@pytest.fixture(scope="session")
def pictures(products: Path, product_names: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A normal picture of each product and one of noise, which is of none, for reading only."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, name in enumerate(product_names):
        Image.open(products / name / "train/good/000.png").convert("RGB").save(folder / f"{number}.png")
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "none.png")
    return folder


@pytest.fixture(scope="session")
def trained_ccl(products: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of CCL, 64 px, that knows ``product_names`` and takes noise for unknown, for reading only."""
    import torch  # noqa: PLC0415  # heavy, and not for every test
    from anomalib.engine import Engine  # noqa: PLC0415
    from lightning import seed_everything  # noqa: PLC0415

    from anomalib_ccl import CCL, MultiCategory  # noqa: PLC0415

    seed_everything(0)
    model = CCL("test_efficientnet", pre_trained=False, image_size=(64, 64), visualizer=False)
    folder = tmp_path_factory.mktemp("trained_ccl")
    engine = Engine(max_epochs=8, default_root_dir=folder, accelerator="cpu", enable_progress_bar=False)
    engine.fit(model, MultiCategory(root=products, train_batch_size=6, num_workers=0))
    # How far a few steps of training part products is not the same on all machines, so the border is drawn here.
    images = torch.stack([torch.from_numpy(np.asarray(Image.open(p))) for p in sorted(pictures.iterdir())])
    with torch.inference_mode():
        embeddings = model.eval()(images.permute(0, 3, 1, 2) / 255).embedding
    calibration = model.model.calibration
    *known, none = (torch.nn.functional.normalize(embeddings) @ calibration.prototypes.T).amax(dim=1).tolist()
    assert none < min(known)
    calibration.novelty_threshold.fill_(1 - (none + min(known)) / 2)
    engine.trainer.save_checkpoint(folder / "model.ckpt")
    return folder / "model.ckpt"


@pytest.fixture(scope="session")
def exported_ccl(trained_ccl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It in OpenVINO, as ``anomalib export`` makes it by default, for reading only."""
    from anomalib_ccl import CCL  # noqa: PLC0415

    return CCL.load_from_checkpoint(trained_ccl).to_openvino(tmp_path_factory.mktemp("exported_ccl"))
