"""One image through the engine and through every exported form gives one answer."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from anomalib.data import PredictDataset
from anomalib.data.utils import read_image
from anomalib.deploy import CompressionType, OpenVINOInferencer, TorchInferencer
from anomalib.engine import Engine
from lightning import seed_everything
from PIL import Image
from torch.utils.data import DataLoader

from anomalib_ccl import CCL, MultiCategory

SIZE = (64, 64)
# Some processors' OpenVINO computes in bfloat16 unless told otherwise; scores then differed by 2 to 7 %.
SINGLE_PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}
Answer = tuple[float, np.ndarray]


# A fixed input size with anomalib's own decoder, a dynamic one with the generic decoder.
@pytest.fixture(scope="module", params=[("resnet18", SIZE), ("tf_efficientnet_lite0", None)], ids=["fixed", "dynamic"])
def case(request: pytest.FixtureRequest) -> tuple[str, tuple[int, int] | None]:
    return request.param


@pytest.fixture(scope="module")
def trained(case: tuple, sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> CCL:
    seed_everything(0)
    # Pre-trained where there are weights: no image then lies between two classes, of which each precision takes one.
    model = CCL(case[0], pre_trained=case[1] is None, image_size=SIZE, visualizer=False)
    engine = Engine(default_root_dir=tmp_path_factory.mktemp("trained"), accelerator="cpu", max_epochs=2)
    engine.fit(model, datamodule=MultiCategory(root=sample_root, train_batch_size=8, num_workers=0))
    return model.cpu().eval()


@pytest.fixture(scope="module")
def onnx_file(case: tuple, trained: CCL, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in ONNX, from which its exports to OpenVINO begin; the slow part, and here done once for all."""
    return trained.to_onnx(tmp_path_factory.mktemp("onnx"), input_size=case[1])


@pytest.fixture(scope="module")
def onnx(onnx_file: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(onnx_file)


@pytest.fixture(scope="module")
def openvino(trained: CCL, onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "to_onnx", lambda *args, **kwargs: onnx_file)
        return trained.to_openvino(tmp_path_factory.mktemp("openvino"))


@pytest.fixture(scope="module")
def example(
    case: tuple, trained: CCL, sample_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Answer]:
    """The test image whose score is furthest from 0 and 1, because a clamped one would agree with anything.

    For a dynamic input size, the images are larger than the model's, and as rich in detail.
    """
    folder = sample_root / "brick" / "test"
    if case[1] is None:
        small, folder = sorted(folder.rglob("*.png")), tmp_path_factory.mktemp("large")
        for number, path in enumerate(small):
            pixels = np.tile(np.asarray(Image.open(path).convert("RGB")), (3, 4, 1))[:150, :210]
            Image.fromarray(pixels).save(folder / f"{number}.png")
    dataset = PredictDataset(folder)
    engine = Engine(default_root_dir=tmp_path_factory.mktemp("predicted"), accelerator="cpu")
    batches = engine.predict(trained, dataloaders=DataLoader(dataset, collate_fn=dataset.collate_fn))
    batch = min(batches, key=lambda batch: abs(batch.pred_score.item() - 0.5))
    score, anomaly_map = batch.pred_score.item(), batch.anomaly_map.squeeze().numpy()
    assert 0 < score < 1
    return Path(batch.image_path[0]), (score, anomaly_map)


@pytest.fixture(scope="module")
def image(example: tuple[Path, Answer]) -> Path:
    return example[0]


@pytest.fixture(scope="module")
def expected(example: tuple[Path, Answer]) -> Answer:
    return example[1]


def assert_same(score: np.ndarray | torch.Tensor, anomaly_map: np.ndarray | torch.Tensor, expected: Answer) -> None:
    assert float(np.asarray(score).squeeze()) == pytest.approx(expected[0], rel=1e-3)
    np.testing.assert_allclose(np.asarray(anomaly_map).squeeze(), expected[1], rtol=1e-3, atol=1e-3 * expected[1].max())


def test_torch_export_gives_the_engines_answer(
    trained: CCL, image: Path, expected: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    batch = TorchInferencer(trained.to_torch(tmp_path), device="cpu").predict(image)
    assert_same(batch.pred_score, batch.anomaly_map, expected)


def run(session: onnxruntime.InferenceSession, pixels: np.ndarray) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: pixels}), strict=True))


def test_onnx_export_gives_the_engines_answer(
    onnx: onnxruntime.InferenceSession, image: Path, expected: Answer
) -> None:
    outputs = run(onnx, read_image(image, as_tensor=True).numpy()[None])
    assert_same(outputs["pred_score"], outputs["anomaly_map"], expected)


def test_openvino_export_gives_the_engines_answer(
    openvino: Path, image: Path, expected: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # anomalib's inferencer leaves its cache in the working directory
    batch = OpenVINOInferencer(openvino, device="CPU", config=SINGLE_PRECISION).predict(image)
    assert_same(batch.pred_score, batch.anomaly_map, expected)


def test_dynamic_export_takes_batches_and_images_of_other_sizes(
    case: tuple, trained: CCL, onnx: onnxruntime.InferenceSession
) -> None:
    size = case[1] or (80, 100)
    pixels = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = trained(pixels).pred_score.numpy()
    np.testing.assert_allclose(run(onnx, pixels.numpy())["pred_score"], scores, rtol=1e-3)


def test_half_precision_openvino_export_is_smaller_and_close(
    trained: CCL,
    onnx_file: Path,
    openvino: Path,
    image: Path,
    expected: Answer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trained, "to_onnx", lambda *args, **kwargs: onnx_file)
    half = trained.to_openvino(tmp_path, compression_type=CompressionType.FP16)
    assert half.with_suffix(".bin").stat().st_size < 0.6 * openvino.with_suffix(".bin").stat().st_size
    score = OpenVINOInferencer(half, device="CPU", config=SINGLE_PRECISION).predict(image).pred_score
    assert float(score.squeeze()) == pytest.approx(expected[0], rel=0.02)
