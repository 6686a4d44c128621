"""Exported models tell the product of each image, as the engine does, and nothing else changes in them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from anomalib.data import ImageBatch, PredictDataset
from anomalib.deploy import CompressionType
from anomalib.engine import Engine
from lightning import seed_everything
from PIL import Image

from anomalib_ccl import CCL, CCLInferencer, MultiCategory

CATEGORIES = ["brick", "retina", 'tissue & "ink", <5 mm']
OUTPUTS = ["pred_score", "pred_label", "anomaly_map", "pred_mask"]
FORMS = ["onnx", "fp32", CompressionType.FP16, CompressionType.INT8, CompressionType.INT8_PTQ]


@pytest.fixture(scope="module")
def root(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for source, category in zip(["brick", "retina", "tissue"], CATEGORIES, strict=True):
        shutil.copytree(sample_root / source, root / category)
    return root


@pytest.fixture(scope="module")
def data(root: Path) -> MultiCategory:
    return MultiCategory(root=root, train_batch_size=6, eval_batch_size=1, num_workers=0)


@pytest.fixture(scope="module")
def trained(data: MultiCategory, tmp_path_factory: pytest.TempPathFactory) -> CCL:
    seed_everything(0)
    model = CCL("tf_efficientnet_lite0", image_size=(64, 64), visualizer=False)
    engine = Engine(
        max_epochs=12,
        check_val_every_n_epoch=12,
        default_root_dir=tmp_path_factory.mktemp("trained"),
        accelerator="cpu",
        enable_progress_bar=False,
    )
    engine.fit(model, data)
    return model.eval()


@pytest.fixture(scope="module")
def onnx(trained: CCL, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained.to_onnx(tmp_path_factory.mktemp("onnx"), input_size=(64, 64))


@pytest.fixture(scope="module", params=FORMS)
def exported(
    request: pytest.FixtureRequest,
    onnx: Path,
    trained: CCL,
    data: MultiCategory,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    if request.param == "onnx":
        return onnx
    folder = tmp_path_factory.mktemp("openvino")
    if request.param == "fp32":
        return trained.to_openvino(folder)
    if request.param != CompressionType.FP16:
        pytest.importorskip("nncf", reason="needs pip install '.[int8]'")
    return trained.to_openvino(folder, compression_type=request.param, datamodule=data)


@pytest.fixture(scope="module")
def images(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image of each product, and one of none."""
    folder = tmp_path_factory.mktemp("images")
    for number, category in enumerate(CATEGORIES):
        image = Image.open(root / category / "train/good/000.png")
        image.convert("RGB").save(folder / f"{number}.png")
    Image.new("RGB", (64, 64)).save(folder / "black.png")
    return folder


@pytest.fixture(scope="module")
def predicted(trained: CCL, images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[ImageBatch]:
    """What the engine says of each image."""
    engine = Engine(default_root_dir=tmp_path_factory.mktemp("engine"), accelerator="cpu", enable_progress_bar=False)
    return engine.predict(trained, dataset=PredictDataset(images))


@pytest.fixture(scope="module")
def told_by_the_engine(predicted: list[ImageBatch]) -> list[str]:
    return [name for batch in predicted for name in batch.explanation]


# In a process of its own, as at the edge.
EDGE = """
import json, sys
from pathlib import Path
import numpy as np
from PIL import Image
from anomalib.deploy import OpenVINOInferencer
from anomalib_ccl import CCLInferencer

model, images = sys.argv[1], sorted(Path(sys.argv[2]).iterdir())
ours, theirs = CCLInferencer(model, device="CPU"), OpenVINOInferencer(model, device="CPU")
told = [ours.predict(path) for path in images]
batch = ours.predict(np.stack([np.asarray(Image.open(path)) for path in images]))
one_size = CCLInferencer(model, device="CPU", image_size=(64, 64))
print(json.dumps({
    "told": [prediction.explanation for prediction in told],
    "told of a batch": batch.explanation,
    "scores": [prediction.pred_score.item() for prediction in told],
    "scores at one size": [one_size.predict(path).pred_score.item() for path in images],
    "their scores": [theirs.predict(path).pred_score.item() for path in images],
    "their outputs": [output.any_name for output in theirs.model.outputs],
}))
"""


@pytest.fixture(scope="module")
def at_the_edge(exported: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    command = [sys.executable, "-W", "ignore", "-c", EDGE, str(exported), str(images)]
    # anomalib's own inferencer leaves its cache in the working directory.
    output = subprocess.check_output(command, cwd=tmp_path_factory.mktemp("edge"), text=True)
    return json.loads(output.splitlines()[-1])


def test_every_exported_form_tells_the_class_that_the_engine_tells(
    at_the_edge: dict[str, list], told_by_the_engine: list[str]
) -> None:
    assert at_the_edge["told"] == [[name] for name in told_by_the_engine]
    assert told_by_the_engine == [*CATEGORIES, "unknown"]


def test_every_exported_form_gives_nearly_the_scores_of_the_engine(
    at_the_edge: dict[str, list], predicted: list[ImageBatch]
) -> None:
    scores = [score for batch in predicted for score in batch.pred_score.flatten().tolist()]
    assert at_the_edge["scores"] == pytest.approx(scores, abs=0.05)


def test_a_batch_gets_a_class_for_each_of_its_images(at_the_edge: dict[str, list]) -> None:
    assert at_the_edge["told of a batch"] == [*CATEGORIES, "unknown"]


def test_anomalibs_own_inferencer_takes_every_form_and_gives_the_same_scores(at_the_edge: dict[str, list]) -> None:
    assert at_the_edge["their outputs"] == OUTPUTS
    assert at_the_edge["scores"] == pytest.approx(at_the_edge["their scores"], rel=1e-4)


def test_inferencer_for_images_of_one_size_gives_the_same_scores(at_the_edge: dict[str, list]) -> None:
    # In bfloat16, where the processor has it, another fusion rounds otherwise.
    assert at_the_edge["scores at one size"] == pytest.approx(at_the_edge["scores"], abs=0.02)


def test_onnx_runtime_reads_the_class_names_and_sees_no_new_output(onnx: Path) -> None:
    session = onnxruntime.InferenceSession(onnx)
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == CATEGORIES
    assert [output.name for output in session.get_outputs()] == OUTPUTS


@pytest.mark.usefixtures("onnx")
def test_a_model_gives_what_it_gave_before_once_it_was_exported(trained: CCL) -> None:
    assert list(trained(torch.rand(1, 3, 64, 64))._asdict()) == OUTPUTS


def test_a_model_that_was_not_calibrated_is_refused_with_its_path(tmp_path: Path) -> None:
    model = CCL("resnet18", pre_trained=False, projection="none", noise_probability=0, image_size=(64, 64))
    path = model.to_onnx(tmp_path, input_size=(64, 64))
    with pytest.raises(ValueError, match=rf"{path} cannot tell products: .* calibrate=True.* OpenVINOInferencer"):
        CCLInferencer(path, device="CPU")
