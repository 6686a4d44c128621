"""Exported models tell the product of each image, as the engine does, and nothing else changes in them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from anomalib.data import ImageBatch, PredictDataset
from anomalib.deploy import CompressionType
from anomalib.engine import Engine
from lightning import seed_everything
from PIL import Image
from torch.nn import functional as F

from anomalib_ccl import CCL, CCLInferencer, MultiCategory
from anomalib_ccl.data.ranges import PixelRanges
from anomalib_ccl.limits import set_false_alarm_rate
from anomalib_ccl.model.statistics import limits_at

CATEGORIES = ["brick", "retina", 'tissue & "ink", <5 mm']
OUTPUTS = ["pred_score", "pred_label", "anomaly_map", "pred_mask"]
# Some processors' OpenVINO computes in bfloat16 unless told otherwise.
SINGLE_PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}
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
def images(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image of each product, and one of none."""
    folder = tmp_path_factory.mktemp("images")
    for number, category in enumerate(CATEGORIES):
        image = Image.open(root / category / "train/good/000.png")
        image.convert("RGB").save(folder / f"{number}.png")
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "none.png")
    return folder


@pytest.fixture(scope="module")
def trained(data: MultiCategory, images: Path, tmp_path_factory: pytest.TempPathFactory) -> CCL:
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
    model.eval()
    # How far a few steps of training part products is not the same on all machines, so the border is drawn here.
    with torch.inference_mode():
        pictures = model.pre_processor.transform(torch.stack([item.image for item in PredictDataset(images)]))
        embeddings = F.normalize(model.model.score(pictures).embedding)
    *known, none = (embeddings @ model.model.calibration.prototypes.T).amax(dim=1)
    assert none < min(known)
    model.model.calibration.novelty_threshold = 1 - (none + min(known)) / 2
    return model


@pytest.fixture(scope="module")
def onnx(trained: CCL, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained.to_onnx(tmp_path_factory.mktemp("onnx"), input_size=(64, 64))


@pytest.fixture(scope="module")
def any_size_in_onnx(trained: CCL, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What exports to OpenVINO begin with; the slow part, and here done once for most of them."""
    return trained.to_onnx(tmp_path_factory.mktemp("any size"))


@pytest.fixture(scope="module")
def of_any_size(trained: CCL, any_size_in_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "to_onnx", lambda *args, **kwargs: any_size_in_onnx)
        return trained.to_openvino(tmp_path_factory.mktemp("openvino"))


@pytest.fixture(scope="module", params=FORMS)
def exported(
    request: pytest.FixtureRequest,
    onnx: Path,
    any_size_in_onnx: Path,
    of_any_size: Path,
    trained: CCL,
    data: MultiCategory,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    if request.param in {"onnx", "fp32"}:
        return onnx if request.param == "onnx" else of_any_size
    folder = tmp_path_factory.mktemp(request.param.value)
    if request.param != CompressionType.FP16:
        pytest.importorskip("nncf", reason="needs pip install '.[int8]'")
    if request.param != CompressionType.INT8_PTQ:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trained, "to_onnx", lambda *args, **kwargs: any_size_in_onnx)
            return trained.to_openvino(folder, compression_type=request.param, datamodule=data)
    # 8 bits move embeddings further than the border is away, so there is none.
    calibration = trained.model.calibration
    border, calibration.novelty_threshold = calibration.novelty_threshold, torch.tensor(2.0)
    path = trained.to_openvino(folder, compression_type=request.param, datamodule=data)
    calibration.novelty_threshold = border
    return path


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
# bfloat16 does not tell apart what is as near to the border of the unknown as in these models, trained for a minute.
single = {"device": "CPU", "config": {"INFERENCE_PRECISION_HINT": "f32"}}
ours, theirs = CCLInferencer(model, **single), OpenVINOInferencer(model, **single)
told = [ours.predict(path) for path in images]
batch = ours.predict(np.stack([np.asarray(Image.open(path)) for path in images]))
one_size = CCLInferencer(model, image_size=(64, 64), **single)
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
    found = json.loads(output.splitlines()[-1])
    if CompressionType.INT8_PTQ.value in exported.parent.parent.parent.name:
        # Without a border, nothing is unknown.
        found = {name: values if name == "their outputs" else values[:-1] for name, values in found.items()}
    return found


def test_every_exported_form_tells_the_class_that_the_engine_tells(
    at_the_edge: dict[str, list], told_by_the_engine: list[str]
) -> None:
    assert at_the_edge["told"] == [[name] for name in told_by_the_engine][: len(at_the_edge["told"])]
    assert told_by_the_engine == [*CATEGORIES, "unknown"]


def test_every_exported_form_gives_nearly_the_scores_of_the_engine(
    at_the_edge: dict[str, list], predicted: list[ImageBatch]
) -> None:
    scores = [score for batch in predicted for score in batch.pred_score.flatten().tolist()]
    assert at_the_edge["scores"] == pytest.approx(scores[: len(at_the_edge["scores"])], abs=0.05)


def test_a_batch_gets_a_class_for_each_of_its_images(at_the_edge: dict[str, list]) -> None:
    told = at_the_edge["told of a batch"]
    assert told == [*CATEGORIES, "unknown"][: len(told)]


def test_anomalibs_own_inferencer_takes_every_form_and_gives_the_same_scores(at_the_edge: dict[str, list]) -> None:
    assert at_the_edge["their outputs"] == OUTPUTS
    assert at_the_edge["scores"] == pytest.approx(at_the_edge["their scores"], rel=1e-4)


def test_inferencer_for_images_of_one_size_gives_the_same_scores(at_the_edge: dict[str, list]) -> None:
    # In bfloat16, where the processor has it, another fusion rounds otherwise.
    assert at_the_edge["scores at one size"] == pytest.approx(at_the_edge["scores"], abs=0.02)


def test_every_exported_form_takes_a_product_and_a_rate(
    exported: Path, trained: CCL, images: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(exported.parent, tmp_path / "copy")) / exported.name
    pixels = torch.stack([item.image for item in PredictDataset(images)])
    location, scale = trained.model.calibration.statistics()
    with torch.inference_mode():
        raw = trained.model.score(trained.pre_processor.transform(pixels)).score[:, 0]
    for rate in (0.5, 0.1):  # the second finds what the first has left
        assert set_false_alarm_rate(copy, rate).class_names == CATEGORIES
        inferencer = CCLInferencer(copy, device="CPU", config=SINGLE_PRECISION)
        for index, product in enumerate(CATEGORIES):
            limit = limits_at(location, scale, rate)[index]
            prediction = inferencer.predict(pixels.numpy(), product=product)
            assert prediction.explanation == [product] * 4
            expected = (raw / limit / 2).clamp(max=1).tolist()
            assert prediction.pred_score.flatten().tolist() == pytest.approx(expected, abs=0.05)


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


@pytest.fixture(scope="module")
def inferencer(of_any_size: Path) -> CCLInferencer:
    return CCLInferencer(of_any_size, device="CPU", config=SINGLE_PRECISION)


def telling(inferencer: CCLInferencer, product: Path) -> np.ndarray:
    """The picture whose score is furthest from 0 and 1, because one that is cut off would agree with anything."""
    pictures = [np.asarray(Image.open(path)) for path in sorted(product.glob("t*/*/*.png"))]
    return min(pictures, key=lambda picture: abs(inferencer.predict(picture).pred_score.item() - 0.5))


@pytest.fixture(scope="module")
def retina(inferencer: CCLInferencer, root: Path) -> np.ndarray:
    return telling(inferencer, root / "retina")


@pytest.mark.parametrize("product", ["brick", "retina"])
def test_a_picture_gets_the_same_score_however_a_camera_gives_it(
    inferencer: CCLInferencer, root: Path, tmp_path: Path, product: str
) -> None:
    picture = telling(inferencer, root / product)
    assert picture.shape == ((64, 64) if product == "brick" else (64, 64, 3))
    deep, colour = picture.astype(np.uint16) * 257, np.dstack([picture] * 3)[..., :3]
    Image.fromarray(colour).save(tmp_path / "8.png")
    frames = {
        "RGBA": np.dstack([colour, colour[..., 0]]),
        "channels first": colour.transpose(2, 0, 1),
        "batch": colour[None],
        "PIL": Image.fromarray(picture),
        "file": tmp_path / "8.png",
        "16 bits": deep,
        "big-endian": deep.astype(">u2"),
        "int": picture.astype(int),
        "float": picture / np.float32(255),
        "tensor": torch.from_numpy(colour / 255).permute(2, 0, 1),
    }
    if product == "brick":
        Image.fromarray(deep).save(tmp_path / "16.png")
        frames |= {
            "Mono8 with a channel": picture[..., None],
            "Mono8, channels first": picture[None],
            "batch of 16 bits": deep[None, ..., None],
            "PIL of 16 bits": Image.fromarray(deep),
            "file of 16 bits": str(tmp_path / "16.png"),
        }
    expected = inferencer.predict(colour)
    assert 0 < expected.pred_score.item() < 1
    for name, frame in frames.items():
        prediction = inferencer.predict(frame)
        assert prediction.pred_score.item() == pytest.approx(expected.pred_score.item(), abs=1e-4), name
        assert prediction.explanation == expected.explanation, name
        np.testing.assert_allclose(prediction.anomaly_map, expected.anomaly_map, atol=1e-3, err_msg=name)


def test_images_of_a_batch_get_the_scores_that_each_gets_alone(inferencer: CCLInferencer, retina: np.ndarray) -> None:
    frames = [retina[..., 1].astype(np.uint16) * 257, retina[::-1, :, 1].astype(np.uint16) * 257]
    alone = [inferencer.predict(frame).pred_score.item() for frame in frames]
    for batch in (np.stack(frames)[..., None], np.stack(frames)[:, None]):
        assert inferencer.predict(batch).pred_score.flatten().tolist() == pytest.approx(alone, abs=1e-4)
    with pytest.raises(ValueError, match=r"array of shape \(2, 64, 64\) and type uint16 is no image; accepted are"):
        inferencer.predict(np.stack(frames))


def test_files_get_the_scores_that_the_engine_gives_them(
    inferencer: CCLInferencer, trained: CCL, retina: np.ndarray, tmp_path: Path
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    image = Image.fromarray(retina)
    image.save(folder / "0.jpg", exif=turned)
    image.convert("P").save(folder / "1.png")
    Image.fromarray(retina[..., 1].astype(np.uint16) * 257).save(folder / "2.png")
    Image.fromarray((retina[..., 1] / 255).astype(np.float32)).save(folder / "3.tif")
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
    for batch in engine.predict(trained, dataset=PredictDataset(folder)):
        path = Path(batch.image_path[0])
        scores = [inferencer.predict(frame).pred_score.item() for frame in (path, Image.open(path))]
        assert scores == pytest.approx([batch.pred_score.item()] * 2, abs=1e-3), path.name


def test_a_model_knows_the_range_of_its_training_images_in_every_file(
    trained: CCL, of_any_size: Path, retina: np.ndarray, tmp_path: Path
) -> None:
    trained.trainer.save_checkpoint(tmp_path / "model.ckpt")
    assert CCL.load_from_checkpoint(tmp_path / "model.ckpt").pixel_ranges == trained.pixel_ranges == PixelRanges()
    # As if it had been trained on 12 bits.
    xml = of_any_size.read_text()
    assert xml.count("&quot;integers&quot;: null") == 1
    copy = tmp_path / "model.xml"
    copy.write_text(xml.replace("&quot;integers&quot;: null", "&quot;integers&quot;: [0, 4095]"))
    shutil.copy(of_any_size.with_suffix(".bin"), tmp_path)
    inferencer = CCLInferencer(copy, device="CPU", config=SINGLE_PRECISION)
    eight = inferencer.predict(retina).pred_score.item()
    assert inferencer.predict(retina.astype(np.uint16) * 16).pred_score.item() == pytest.approx(eight, abs=0.02)
    with pytest.warns(UserWarning, match="brighter than 4095, which was white in training"):
        inferencer.predict(retina.astype(np.uint16) * 257)


def test_images_of_another_size_than_the_model_takes_are_refused_with_both_sizes(
    onnx: Path, of_any_size: Path, retina: np.ndarray
) -> None:
    exported_for_one = CCLInferencer(onnx, device="CPU")
    for count, frame in ((1, retina[:32]), (1, np.tile(retina, (2, 1, 1))), (2, np.stack([retina[:32]] * 2))):
        message = (
            f"exported for images of 64 × 64 pixels and cannot take {count} of {frame.shape[-3]} × 64; .* input_size"
        )
        with pytest.raises(ValueError, match=message):
            exported_for_one.predict(frame)
    assert len(exported_for_one.predict(np.stack([retina, retina])).pred_score) == 2

    loaded_for_one = CCLInferencer(of_any_size, device="CPU", image_size=(64, 48))
    for count, frame in ((1, retina), (2, np.stack([retina[:, :48]] * 2))):
        message = f"single images of 64 × 48 pixels and cannot take {count} of 64 × {frame.shape[-2]}; .* image_size"
        with pytest.raises(ValueError, match=message):
            loaded_for_one.predict(frame)

    with pytest.raises(ValueError, match=rf"{onnx} was exported for images of 64 × 64 pixels, not for .*\(128, 128\)"):
        CCLInferencer(onnx, device="CPU", image_size=(128, 128))
    for wrong in (64, (64,), (0, 64), (64.0, 64.0)):
        with pytest.raises(ValueError, match="image_size must be the height and width of the images in pixels, got"):
            CCLInferencer(of_any_size, device="CPU", image_size=wrong)


@pytest.mark.parametrize("name", ["missing.xml", "model.bin", "model.pt"])
def test_a_path_that_is_no_exported_model_is_refused_by_its_name(of_any_size: Path, name: str) -> None:
    with pytest.raises((FileNotFoundError, ValueError), match=f"{of_any_size.parent / name}"):
        CCLInferencer(of_any_size.parent / name)


def test_a_device_that_is_not_there_is_refused_with_those_that_are(of_any_size: Path) -> None:
    with pytest.raises(ValueError, match=rf"cannot run {of_any_size} with device='CUDA', .*; devices here: .*CPU"):
        CCLInferencer(of_any_size, device="CUDA")
