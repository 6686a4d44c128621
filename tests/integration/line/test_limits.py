"""A false-alarm rate is set in the file of a trained model, and nothing else is touched."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from anomalib.post_processing import PostProcessor

from anomalib_ccl import CCL, CCLInferencer, __version__
from anomalib_ccl.export.exported_scores import has_tables
from anomalib_ccl.limits import read_limits, set_false_alarm_rate
from anomalib_ccl.training.post_processor import LimitPostProcessor

NAMES = ["brick", "grass", "retina", *(f"Prüfling {number}" for number in range(97))]
SINGLE_PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def many(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows a hundred products, whose tables the exporter would put into a second file."""
    model = CCL.load_from_checkpoint(trained, visualizer=False)
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(97, model.model.calibration.prototypes.shape[1], generator=generator)
    model.model.calibration.add(embeddings, 2 + torch.rand(97, generator=generator), torch.arange(97))
    state = torch.load(trained, weights_only=True)
    state["state_dict"] = model.state_dict()
    state["training_classes"]["names"] = NAMES
    path = tmp_path_factory.mktemp("many") / "many.ckpt"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def model(many: Path) -> CCL:
    return CCL.load_from_checkpoint(many, visualizer=False, class_output=True, product_input=True).eval()


@pytest.fixture(scope="module")
def onnx_file(model: CCL, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model.to_onnx(tmp_path_factory.mktemp("onnx"), input_size=(64, 64))


@pytest.fixture
def checkpoint(many: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(many, tmp_path / "model.ckpt"))


@pytest.fixture
def exported(onnx_file: Path, tmp_path: Path) -> Path:
    """A copy of the ONNX file, which has a second one beside it."""
    return Path(shutil.copytree(onnx_file.parent, tmp_path / "exported")) / onnx_file.name


def test_file_and_checkpoint_say_the_same_of_the_limits(many: Path, model: CCL, onnx_file: Path) -> None:
    limits = read_limits(onnx_file)
    assert limits.class_names == NAMES
    assert limits.limits == pytest.approx(model.model.calibration.limits().tolist())
    assert limits.image_size == [64, 64]
    assert limits.version == __version__
    assert limits.threshold == pytest.approx(model.post_processor.image_threshold.item())
    assert limits.pixel_threshold == pytest.approx(model.post_processor.pixel_threshold.item())
    assert read_limits(many) == limits._replace(version=None)


def run(path: Path, images: torch.Tensor, product: list[int]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"input": images.numpy(), "product": np.array(product)}), strict=True))


def test_class_and_raw_score_are_outputs_where_asked_for(model: CCL, onnx_file: Path, images: torch.Tensor) -> None:
    outputs = run(onnx_file, images, [-1])
    assert list(outputs) == ["pred_score", "pred_label", "anomaly_map", "pred_mask", "class_index", "raw_score"]
    with torch.no_grad():
        normalized = model.pre_processor(images)
        calibrated, raw = model.model.classify(normalized), model.model.score(normalized).score
    assert outputs["class_index"].tolist() == calibrated.class_index.tolist()
    np.testing.assert_allclose(outputs["raw_score"], raw.numpy(), rtol=1e-4)


def test_images_are_scored_by_the_limit_of_the_product_that_is_said(onnx_file: Path, images: torch.Tensor) -> None:
    limits = read_limits(onnx_file)
    recognised, said = run(onnx_file, images, [-1]), run(onnx_file, images, [2, -1, 0])
    assert said["class_index"].tolist() == [2, recognised["class_index"][1], 0]
    assert said["pred_score"][1] == pytest.approx(recognised["pred_score"][1])
    expected = said["raw_score"].ravel() / np.array(limits.limits)[said["class_index"]] > limits.threshold
    assert said["pred_label"].ravel().tolist() == expected.tolist()
    inferencer = CCLInferencer(onnx_file, device="CPU", config=SINGLE_PRECISION)
    for product, index in (("retina", 2), (None, -1)):
        prediction = inferencer.predict(images.numpy(), product=product)
        np.testing.assert_allclose(prediction.pred_score, run(onnx_file, images, [index])["pred_score"], rtol=1e-3)
    assert inferencer.predict(images.numpy(), product="retina").explanation == ["retina"] * 3
    with pytest.raises(ValueError, match="does not know the product 'unknown'; it knows brick, grass, retina, "):
        inferencer.predict(images.numpy(), product="unknown")


@pytest.mark.parametrize("rate", [0.01, 0.5])
def test_a_rate_set_in_a_file_gives_what_one_set_in_the_checkpoint_gives(
    checkpoint: Path, exported: Path, images: torch.Tensor, rate: float
) -> None:
    weights = exported.with_name("model.onnx.data").read_bytes()
    limits = set_false_alarm_rate(exported, rate)
    assert limits == read_limits(exported) == set_false_alarm_rate(checkpoint, rate)._replace(version=limits.version)
    assert (limits.false_alarm_rate, limits.threshold, limits.pixel_threshold) == (rate, 1, 1)
    assert exported.with_name("model.onnx.data").read_bytes() == weights
    with torch.no_grad():
        expected = CCL.load_from_checkpoint(checkpoint, visualizer=False).eval()(images)
    outputs = run(exported, images, [-1])
    for name, values in expected._asdict().items():
        np.testing.assert_allclose(outputs[name], values.numpy(), rtol=1e-3, atol=1e-4)


def test_a_checkpoint_remembers_its_rate_and_can_be_trained_further(checkpoint: Path) -> None:
    before = torch.load(checkpoint, weights_only=True)
    set_false_alarm_rate(checkpoint, 0.02)
    after = torch.load(checkpoint, weights_only=True)
    assert before.keys() == after.keys()
    assert CCL.load_from_checkpoint(checkpoint, visualizer=False).model.calibration.false_alarm_rate == 0.02
    changed = {name for name, value in before["state_dict"].items() if not value.equal(after["state_dict"][name])}
    assert all(name.startswith("post_processor.") for name in changed)


@pytest.fixture
def unlike(checkpoint: Path, exported: Path, tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Files whose limits cannot be set, by what is said of them; they must stay as they are."""
    state = torch.load(checkpoint, weights_only=True)
    state["state_dict"] = {name: v for name, v in state["state_dict"].items() if "calibration" not in name}
    torch.save(state, tmp_path / "raw.ckpt")
    state["state_dict"] = {"model.layer.weight": torch.ones(1)}
    torch.save(state, tmp_path / "other.ckpt")
    torch.onnx.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),), tmp_path / "linear.onnx", dynamo=True, verbose=False)
    (tmp_path / "broken.xml").write_text("<net/>")
    (tmp_path / "broken.bin").write_text("")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    own = onnx.load(exported, load_external_data=False)
    (threshold,) = (entry for entry in own.metadata_props if entry.key == "threshold")
    threshold.value = "null"
    onnx.save(own, exported)
    files = {
        "is not calibrated": tmp_path / "raw.ckpt",
        "checkpoint of another model": tmp_path / "other.ckpt",
        "has no limits: it is not the export of a CCL model": tmp_path / "linear.onnx",
        "cannot be read": tmp_path / "broken.xml",
        "is not a checkpoint": tmp_path / "text.ckpt",
        "post-processor that cannot be set": exported,
    }
    there = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    yield files
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == there


def test_files_without_limits_are_refused_and_stay_as_they_are(unlike: dict[str, Path], tmp_path: Path) -> None:
    for message, path in unlike.items():
        with pytest.raises(ValueError, match=f"{path}.*{message}"):
            set_false_alarm_rate(path, 0.01)
    for path in (tmp_path / "absent.ckpt", tmp_path / "absent.xml"):
        with pytest.raises(FileNotFoundError, match=str(path)):
            read_limits(path)
    with pytest.raises(ValueError, match=r"model\.pt is no model that OpenVINO runs"):
        read_limits(tmp_path / "model.pt")


@pytest.mark.parametrize("rate", [0, -1, 0.51, float("nan")])
def test_a_rate_out_of_range_is_refused_before_any_file_is_read(rate: float) -> None:
    with pytest.raises(ValueError, match=r"false_alarm_rate must lie in \(0, 0.5\], got"):
        set_false_alarm_rate("absent.ckpt", rate)


def test_class_output_needs_classes(tmp_path: Path) -> None:
    model = CCL("resnet18", pre_trained=False, projection="none", noise_probability=0, class_output=True)
    with pytest.raises(ValueError, match="class_output and product_input need a model that knows products"):
        model.to_onnx(tmp_path)
    assert not list(tmp_path.iterdir())


def test_only_anomalibs_own_thresholds_can_be_tables() -> None:
    limited = LimitPostProcessor()
    assert has_tables(limited)
    assert not has_tables(PostProcessor())  # which never saw a validation
    assert not has_tables(type("Own", (LimitPostProcessor,), {})())
    for flat in (limited.image_max, limited.pixel_max):
        flat.zero_()
        assert not has_tables(limited)
        flat.fill_(2)
    limited.enable_thresholding = False
    assert not has_tables(limited)
