"""Compressed exports score nearly as the model does, name the same products, and keep their limits exact."""

from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import PredictDataset
from anomalib.deploy import CompressionType
from anomalib.engine import Engine
from lightning import seed_everything
from openvino import Core
from torchvision.transforms.v2.functional import resize

from anomalib_ccl import CCL, CCLInferencer, MultiCategory
from anomalib_ccl.export.limits import read_limits, set_false_alarm_rate

SINGLE_PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}
FORMS = [CompressionType.FP16, CompressionType.INT8, CompressionType.INT8_PTQ]


@pytest.fixture(scope="module")
def data(products: Path) -> MultiCategory:
    return MultiCategory(root=products, train_batch_size=6, eval_batch_size=1, num_workers=0)


@pytest.fixture(scope="module")
def model(data: MultiCategory, tmp_path_factory: pytest.TempPathFactory) -> CCL:
    """A model of pre-trained weights: those drawn at random do not tell products apart in 8 bits."""
    seed_everything(0)
    model = CCL("tf_efficientnet_lite0", image_size=(64, 64), visualizer=False)
    folder = tmp_path_factory.mktemp("trained")
    Engine(max_epochs=8, default_root_dir=folder, accelerator="cpu", enable_progress_bar=False).fit(model, data)
    # 8 bits move embeddings further than the border of the unknown is away.
    model.model.calibration.novelty_threshold.fill_(2)
    return model.eval()


@pytest.fixture(scope="module")
def megabytes(model: CCL, tmp_path_factory: pytest.TempPathFactory) -> float:
    """The size of the model in single precision."""
    return model.to_openvino(tmp_path_factory.mktemp("single")).with_suffix(".bin").stat().st_size / 1e6


@pytest.mark.parametrize("form", FORMS)
def test_every_form_names_products_and_keeps_limits(
    model: CCL, megabytes: float, pictures: Path, data: MultiCategory, tmp_path: Path, form: CompressionType
) -> None:
    if form != CompressionType.FP16:
        pytest.importorskip("nncf", reason="needs pip install '.[int8]'")
    path = model.to_openvino(tmp_path, compression_type=form, datamodule=data)
    assert path.with_suffix(".bin").stat().st_size / 1e6 < 0.6 * megabytes
    images = torch.stack([item.image for item in PredictDataset(pictures)])[:3]
    for rate in (0.01, 0.3):
        assert set_false_alarm_rate(path, rate).limits == read_limits(path).limits
        model.model.calibration.false_alarm_rate = rate
        assert read_limits(path).limits == model.model.calibration.limits.tolist()
        with torch.inference_mode():
            expected = model(images)
        found = CCLInferencer(path, device="CPU", config=SINGLE_PRECISION).predict(images)
        assert found.explanation == model.class_names
        np.testing.assert_allclose(found.pred_score.ravel(), expected.pred_score.ravel(), atol=0.05)


def test_a_model_for_one_size_is_quantised_by_images_of_that_size(
    model: CCL, data: MultiCategory, pictures: Path, tmp_path: Path
) -> None:
    pytest.importorskip("nncf", reason="needs pip install '.[int8]'")
    form, size = CompressionType.INT8_PTQ, (80, 48)
    path = model.to_openvino(tmp_path, input_size=size, compression_type=form, datamodule=data)
    images = resize(torch.stack([item.image for item in PredictDataset(pictures)])[:3], size)
    with torch.inference_mode():
        expected = model(images)
    found = CCLInferencer(path, device="CPU", config=SINGLE_PRECISION).predict(images)
    np.testing.assert_allclose(found.pred_score.ravel(), expected.pred_score.ravel(), atol=0.05)


@pytest.mark.parametrize("network", [{"recipe": "memory"}, {"reconstruction": "vit"}], ids=["remembered", "vit"])
def test_neither_memory_nor_prototypes_are_quantised(
    network: dict[str, str], data: MultiCategory, pictures: Path, tmp_path: Path
) -> None:
    pytest.importorskip("nncf", reason="needs pip install '.[int8]'")
    seed_everything(0)
    backbone = "test_vit" if "reconstruction" in network else "tf_efficientnet_lite0"
    model = CCL(backbone, image_size=(64, 64), pre_trained=backbone != "test_vit", visualizer=False, **network)
    engine = Engine(max_epochs=1, default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
    engine.fit(model, data)
    paths = [
        model.eval().to_openvino(tmp_path / str(form), compression_type=form, datamodule=data)
        for form in (None, CompressionType.INT8, CompressionType.INT8_PTQ)
    ]
    kinds = [[node.get_type_name() for node in Core().read_model(path).get_ordered_ops()] for path in paths]
    assert kinds[0].count("FakeQuantize") == 0 < kinds[2].count("FakeQuantize")
    images = torch.stack([item.image for item in PredictDataset(pictures)])[:3]
    # The pictures are in the memory, at a distance of 0, so that the rounding of the features shows as it is.
    for path, tolerance in zip(paths, (1e-3, 0.2, 0.2), strict=True):
        found = CCLInferencer(path, device="CPU", config=SINGLE_PRECISION).predict(images)
        with torch.inference_mode():
            expected = model(images)
        np.testing.assert_allclose(found.pred_score.ravel(), expected.pred_score.ravel(), atol=tolerance)
