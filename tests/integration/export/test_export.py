"""One image through the engine and through every exported form gives one answer, whatever the options of the export."""

import importlib
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from anomalib.data import PredictDataset
from anomalib.deploy import CompressionType, OpenVINOInferencer, TorchInferencer
from anomalib.engine import Engine
from numpy.typing import NDArray
from PIL import Image

from anomalib_ccl import CCL, CCLInferencer, MultiCategory, __version__
from anomalib_ccl.errors import InputError
from anomalib_ccl.export.limits import read_limits, set_false_alarm_rate
from anomalib_ccl.model.outputs import Prediction

pytestmark = pytest.mark.openvino

# Some processors' OpenVINO computes in bfloat16 unless it is kept from it.
SINGLE_PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}
OUTPUTS = ["pred_score", "pred_label", "anomaly_map", "pred_mask"]


@pytest.fixture(scope="module")
def model(trained_ccl: Path) -> CCL:
    return CCL.load_from_checkpoint(trained_ccl).eval()


@pytest.fixture(scope="module")
def images(pictures: Path) -> torch.Tensor:
    return torch.stack([item.image for item in PredictDataset(pictures)])


@pytest.fixture(scope="module")
def large(images: torch.Tensor) -> torch.Tensor:
    """Images larger than the model's, and as rich in detail."""
    return images.tile(1, 1, 3, 4)[..., :150, :210]


@pytest.fixture(scope="module")
def full(model: CCL, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file of any size with all outputs and inputs that there are."""
    return model.to_onnx(tmp_path_factory.mktemp("full"), class_output=True, product_input=True)


def run(path: Path, images: torch.Tensor, product: list[int]) -> dict[str, NDArray]:
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"input": images.numpy(), "product": np.array(product)}), strict=True))


def predict(model: CCL, images: torch.Tensor, product: torch.Tensor | None = None) -> Prediction:
    with torch.inference_mode():
        return model(images, product)


def shaped(fields: Mapping[str, NDArray | torch.Tensor], like: Prediction) -> dict[str, NDArray]:
    """Fields in the shapes of the network; anomalib's dataclasses drop axes of length 1."""
    return {name: np.asarray(values).reshape(getattr(like, name).shape) for name, values in fields.items()}


def assert_same(found: Mapping[str, NDArray | torch.Tensor | None], expected: Prediction) -> None:
    for name, values in found.items():
        wanted = getattr(expected, name)
        assert values is not None
        if wanted.is_floating_point():
            np.testing.assert_allclose(np.asarray(values), wanted, rtol=1e-4, atol=1e-4, err_msg=name)
        else:
            np.testing.assert_array_equal(np.asarray(values), wanted, err_msg=name)


def test_onnx_gives_scores_maps_and_classes_of_the_model(
    model: CCL, full: Path, images: torch.Tensor, large: torch.Tensor
) -> None:
    for batch in (images, large, images[:1]):
        found = run(full, batch, [-1])
        assert list(found) == [*OUTPUTS, "class_index", "raw_score"]
        assert_same(found, predict(model, batch))


def test_products_are_scored_by_the_limit_of_the_product_that_is_given(
    model: CCL, full: Path, images: torch.Tensor
) -> None:
    recognised = predict(model, images).class_index.tolist()
    assert recognised == [0, 1, 2, 3]
    for product in ([2, -1, 0, 1], [1]):
        found = run(full, images, product)
        assert_same(found, predict(model, images, torch.tensor(product)))
        wanted = [r if p < 0 else p for p, r in zip(product * (4 // len(product)), recognised, strict=True)]
        assert found["class_index"].tolist() == wanted


def test_the_engine_and_openvino_give_the_scores_of_the_model(
    model: CCL,
    exported_ccl: Path,
    pictures: Path,
    images: torch.Tensor,
    large: torch.Tensor,
    product_names: list[str],
    tmp_path: Path,
) -> None:
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
    batches = engine.predict(model, dataset=PredictDataset(pictures))
    fields = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in OUTPUTS}
    assert_same(shaped(fields, predict(model, images)), predict(model, images))
    ours = CCLInferencer(exported_ccl, device="CPU", config=SINGLE_PRECISION)
    names = [name for batch in batches for name in batch.explanation]
    assert names == ours.predict(images).explanation == [*product_names, "unknown"]
    for batch in (images, large):
        found, expected = ours.predict(batch), predict(model, batch)
        assert_same(shaped({name: getattr(found, name) for name in OUTPUTS}, expected), expected)


def test_anomalibs_own_inferencers_take_the_default_export(
    model: CCL, exported_ccl: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # anomalib's inferencer leaves its cache in the working directory
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    gradients = [parameter.requires_grad for parameter in model.parameters()]
    openvino = OpenVINOInferencer(exported_ccl, device="CPU", config=SINGLE_PRECISION)
    torch_model = TorchInferencer(model.to_torch(tmp_path), device="cpu")
    assert [parameter.requires_grad for parameter in model.parameters()] == gradients
    for path in sorted(pictures.iterdir()):
        image = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None] / 255
        expected = predict(model, image)
        for prediction in (openvino.predict(path), torch_model.predict(path)):
            assert float(prediction.pred_score.squeeze()) == pytest.approx(expected.pred_score.item(), rel=1e-4)
            assert bool(prediction.pred_label.squeeze()) == expected.pred_label.item()


def test_a_file_knows_what_the_checkpoint_knows(
    model: CCL, trained_ccl: Path, exported_ccl: Path, full: Path, product_names: list[str]
) -> None:
    known = read_limits(trained_ccl)
    assert known.class_names == product_names
    assert known.limits == model.model.calibration.limits.tolist()
    assert known.image_size == [64, 64]
    for path in (exported_ccl, full):
        assert read_limits(path) == known._replace(version=__version__)
    metadata = onnxruntime.InferenceSession(full).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == product_names
    assert json.loads(metadata["pixel_ranges"])["floats"] == [0, 1]


@pytest.mark.parametrize("rate", [0.3, 0.0001])
def test_a_rate_set_in_a_file_changes_verdicts_as_one_set_in_the_checkpoint_does(
    trained_ccl: Path, exported_ccl: Path, full: Path, images: torch.Tensor, tmp_path: Path, rate: float
) -> None:
    checkpoint = Path(shutil.copy(trained_ccl, tmp_path))
    copies = [Path(shutil.copytree(path.parent, tmp_path / path.suffix)) / path.name for path in (exported_ccl, full)]
    for path in (checkpoint, *copies):
        set_false_alarm_rate(path, rate)
    expected = predict(CCL.load_from_checkpoint(checkpoint).eval(), images)
    assert_same(run(copies[1], images, [-1]), expected)
    found = CCLInferencer(copies[0], device="CPU", config=SINGLE_PRECISION).predict(images)
    np.testing.assert_allclose(found.pred_score.ravel(), expected.pred_score.ravel(), rtol=1e-4)
    limits = torch.tensor(read_limits(copies[0]).limits)[expected.class_index, None]
    assert (expected.raw_score > limits).equal(expected.pred_label)


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (CompressionType.INT8_PTQ, None, "INT8_PTQ needs validation images; give a datamodule with --data"),
        (CompressionType.INT8_PTQ, {"val_split_mode": "none"}, "INT8_PTQ needs validation images"),
        (CompressionType.INT8_ACQ, {}, "INT8_ACQ would quantise .* the limits too; choose INT8_PTQ"),
        (CompressionType.INT8, "no nncf", r"INT8 needs nncf, .*: pip install 'anomalib-ccl\[int8\]'"),
        (CompressionType.INT8_PTQ, "no nncf", r"INT8_PTQ needs nncf, .*: pip install 'anomalib-ccl\[int8\]'"),
    ],
)
def test_compression_that_cannot_be_is_refused_before_any_file_is_written(
    model: CCL,
    products: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: CompressionType,
    data,
    message: str,
) -> None:
    datamodule = MultiCategory(root=products, num_workers=0, **data) if isinstance(data, dict) else None
    monkeypatch.setitem(sys.modules, "nncf", None if data == "no nncf" else importlib.import_module("nncf"))
    with pytest.raises(InputError, match=message):
        model.to_openvino(tmp_path, compression_type=kind, datamodule=datamodule)
    assert not list(tmp_path.iterdir())


def test_a_model_without_calibration_is_exported_without_classes_and_a_word(
    images: torch.Tensor, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    model = CCL("test_efficientnet", pre_trained=False, image_size=(64, 64), calibrate=False).eval()
    with pytest.raises(InputError, match="class_output and product_input need a model that knows products"):
        model.to_onnx(tmp_path, class_output=True)
    assert not list(tmp_path.iterdir())
    before = predict(model, images)
    path = model.to_onnx(tmp_path, input_size=(64, 64))
    assert capfd.readouterr() == ("", "")
    assert all(torch.equal(a, b) for a, b in zip(before[::2], predict(model, images)[::2], strict=True))
    session = onnxruntime.InferenceSession(path)
    found = dict(
        zip([o.name for o in session.get_outputs()], session.run(None, {"input": images.numpy()}), strict=True)
    )
    assert set(found) <= set(OUTPUTS)
    np.testing.assert_allclose(found["pred_score"], before.pred_score, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match=rf"{path} cannot name products: .* calibrate=True.* OpenVINOInferencer"):
        CCLInferencer(path, device="CPU")
