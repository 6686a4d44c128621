"""A model reads later images as those of its training, from a checkpoint too."""

import numpy as np
import pytest
import torch
from anomalib.engine import Engine
from anomalib.models import Padim
from PIL import Image

from anomalib_ccl import MultiCategory
from anomalib_ccl.data.reading import PixelRanges

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def padim() -> Padim:
    return Padim("resnet18", pre_trained=False, pre_processor=Padim.configure_pre_processor((32, 32)))


@pytest.fixture
def root_of_12_bits(two_categories):
    for path in [*two_categories.glob("*/train/*/*.png"), *two_categories.glob("*/test/*/*.png")]:
        Image.fromarray(np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16).save(path)
    return two_categories


@pytest.mark.parametrize("num_workers", [0, 1])
def test_any_model_reads_with_the_ranges_of_its_checkpoint(root_of_12_bits, tmp_path, num_workers):
    def datamodule() -> MultiCategory:
        return MultiCategory("MVTecAD", root_of_12_bits, num_workers=num_workers, eval_batch_size=1, seed=0)

    def scores(engine, model, **what) -> dict[str, float]:
        batches = engine.predict(model, **what)
        return {item.image_path: float(item.pred_score) for batch in batches for item in batch}

    torch.manual_seed(0)
    model = padim()
    engine = Engine(max_epochs=1, default_root_dir=tmp_path, **QUIET)
    engine.fit(model, datamodule=datamodule())
    expected = scores(engine, model, datamodule=datamodule())
    checkpoint = engine.trainer.checkpoint_callback.best_model_path

    # With a brighter training image the data set has another range of its own.
    white = root_of_12_bits / "cable/train/good/white.png"
    Image.fromarray(np.full((32, 32), 65535, np.uint16)).save(white)
    brighter = datamodule()
    later = Engine(max_epochs=1, default_root_dir=tmp_path, **QUIET)
    assert scores(later, padim(), datamodule=brighter, ckpt_path=checkpoint) == pytest.approx(expected, abs=1e-5)
    assert brighter.ranges == PixelRanges(integers=(0, 4095))
    later.fit(padim(), datamodule=brighter)  # a training has its own
    assert brighter.ranges == PixelRanges(integers=(0, 65535))
