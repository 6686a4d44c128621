"""Limits are read from files of every kind, and set in them; what is no such file is refused in one sentence."""

import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
import torch
from anomalib.pre_processing.utils.spec import transform_to_spec
from onnx import TensorProto, helper, numpy_helper
from torchvision.transforms.v2 import Resize

from anomalib_ccl.cli import main
from anomalib_ccl.errors import InputError
from anomalib_ccl.export.limits import read_limits, set_false_alarm_rate
from anomalib_ccl.export.model_file import CLASS_INDEX, LIMITS, Limits, read_model, write_exported
from anomalib_ccl.model.limits import RATES, limits_at

pytestmark = pytest.mark.openvino

NAMES = ["brick [/red]", 'Prüfling & "ink", <5 mm']
QUANTILES = torch.linspace(1, 2, len(RATES)) * torch.tensor([[1.0], [3.0], [5.0]])
KNOWN = Limits(NAMES, limits_at(QUANTILES, 0.01).tolist(), QUANTILES.tolist(), 0.01, [64, 96], "0.1")


def write_models(folder: Path) -> None:
    """``model.onnx``, ``model.xml`` and ``half.xml``: score ÷ the limit of a class, and 1,000 numbers elsewhere."""
    score = helper.make_tensor_value_info("raw_score", TensorProto.FLOAT, ["batch"])
    index = helper.make_tensor_value_info(CLASS_INDEX, TensorProto.INT64, ["batch"])
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("pred_score", "sum")]
    constants = [numpy_helper.from_array(np.zeros(3, np.float32), LIMITS)]
    constants += [numpy_helper.from_array(np.arange(1000, dtype=np.float32), "numbers")]
    nodes = [
        helper.make_node("Gather", [LIMITS, CLASS_INDEX], ["limit"]),
        helper.make_node("Div", ["raw_score", "limit"], ["pred_score"]),
        helper.make_node("ReduceMax", ["raw_score"], ["highest"]),
        helper.make_node("Add", ["highest", "numbers"], ["sum"]),
    ]
    graph = helper.make_graph(nodes, "g", [score, index], results, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"author": "kept"})
    options = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 0}
    onnx.save(model, folder / "model.onnx", **options)
    write_exported(folder / "model.onnx", KNOWN, pixel_ranges={"floats": [0, 1]})
    for name, half in (("model.xml", False), ("half.xml", True)):
        openvino.save_model(openvino.convert_model(folder / "model.onnx"), folder / name, compress_to_fp16=half)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    calibration = {"limits": torch.tensor(KNOWN.limits), "quantiles": QUANTILES, "prototypes": torch.ones(2, 4)}
    state = {f"model.calibration.{name}": value for name, value in calibration.items()}
    checkpoint = {
        "pytorch-lightning_version": "2.6",
        "state_dict": {"model.network.weight": torch.ones(1), **state},
        "hyper_parameters": {"false_alarm_rate": 0.01},
        "anomalib_pre_processor_config": {"transform": transform_to_spec(Resize((64, 96)))},
        "training_classes": {"names": NAMES},
    }
    torch.save(checkpoint, folder / "model.ckpt")
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models, tmp_path / "copy"))


@pytest.mark.parametrize("name", ["model.ckpt", "model.onnx", "model.xml", "half.xml"])
def test_every_file_knows_its_limits_and_takes_those_of_another_rate(folder: Path, name: str) -> None:
    path, before = folder / name, sorted(found.name for found in folder.iterdir())
    version = None if path.suffix == ".ckpt" else KNOWN.version
    assert read_limits(path) == KNOWN._replace(version=version)
    for rate in (0.2, 0.0001, 0.037):  # each finds what the one before has left
        expected = limits_at(QUANTILES, rate)
        limits = set_false_alarm_rate(str(path), rate)
        assert limits == KNOWN._replace(limits=expected.tolist(), false_alarm_rate=rate, version=version)
        assert limits == read_limits(path)
        if path.suffix == ".ckpt":
            assert torch.equal(torch.load(path)["state_dict"]["model.calibration.limits"], expected)
            continue
        given = {"raw_score": np.full(3, 6, np.float32), CLASS_INDEX: np.array([2, 0, 1])}
        scores, total = openvino.Core().compile_model(read_model(path), "CPU")(given).to_tuple()
        np.testing.assert_allclose(scores, 6 / expected[[2, 0, 1]], rtol=1e-6)
        np.testing.assert_array_equal(total, 6 + np.arange(1000))
    assert sorted(found.name for found in folder.iterdir()) == before
    if path.suffix == ".onnx":
        assert {"author", "pixel_ranges"} < {entry.key for entry in onnx.load(path).metadata_props}
    elif path.suffix == ".xml":
        assert read_model(path).has_rt_info(["framework", "pixel_ranges"])


@pytest.mark.parametrize("name", ["model.ckpt", "model.onnx", "model.xml"])
def test_a_file_keeps_its_permissions_and_stays_where_a_link_leads(folder: Path, name: str, tmp_path: Path) -> None:
    files = [folder / other for other in ("model.ckpt", "model.onnx", "model.onnx.data", "model.xml", "model.bin")]
    for file in files:
        file.chmod(0o640)
        (tmp_path / file.name).symlink_to(file)
    set_false_alarm_rate(tmp_path / name, 0.2)
    assert read_limits(folder / name).false_alarm_rate == 0.2
    assert all((tmp_path / file.name).is_symlink() and file.stat().st_mode & 0o777 == 0o640 for file in files)


@pytest.mark.parametrize("name", ["model.ckpt", "model.onnx", "model.xml"])
def test_a_file_that_cannot_be_written_is_named_and_stays_as_it_was(folder: Path, name: str) -> None:
    resource = pytest.importorskip("resource", reason="limits the size of files, as if the disk were full")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limit[1]))
    try:
        with pytest.raises(
            InputError, match=rf"^{folder / name} cannot be written: .* must be writable, with room for"
        ):
            set_false_alarm_rate(folder / name, 0.02)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_names_are_printed_as_they_are(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["limits", str(folder / "model.onnx")]) == 0
    assert "brick [/red]" in capsys.readouterr().out


def spoil(folder: Path) -> None:
    """Files that were copied badly, and files of others."""
    xml, weights, of_onnx = ((folder / name).read_bytes() for name in ("model.xml", "model.bin", "model.onnx"))
    contents = {
        "no_weights.xml": xml,
        "cut_weights.xml": xml,
        "cut_weights.bin": weights[:1000],
        "cut.onnx": of_onnx[: len(of_onnx) // 2],
        "model.pt": b"PK",
        "changed.xml": xml.replace(b'name="limits"', b'name="other"'),
        "changed.bin": weights,
        "text.ckpt": b"no checkpoint",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "alone").mkdir()
    (folder / "alone/model.onnx").write_bytes(of_onnx)
    onnx_model = onnx.load(folder / "model.onnx")
    del onnx_model.metadata_props[:]
    onnx.save(onnx_model, folder / "foreign.onnx")
    held = torch.load(folder / "model.ckpt")
    for name, kept in (("raw.ckpt", "model.network"), ("other.ckpt", "model.calibration")):
        state = {key: value for key, value in held["state_dict"].items() if key.startswith(kept)}
        torch.save({**held, "state_dict": state}, folder / name)


CUT = "cannot be read: it, or {weights} in the same folder, is missing, damaged or of another model"
REFUSED = {
    **dict.fromkeys(
        ["missing.xml", "model.pt", "model.bin"],
        "{path} is no exported model: give the .xml or .onnx file that `anomalib export --model CCL` makes with "
        "--export_type openvino or onnx, or the .ckpt of a training",
    ),
    **dict.fromkeys(["no_weights.xml", "cut_weights.xml", "cut.onnx", "alone/model.onnx"], CUT),
    "foreign.onnx": "{path} has no limits: it is not the export of a CCL model",
    "changed.xml": "the graph of {path} has no constant 'limits' any more",
    "missing.ckpt": "no checkpoint at {path}",
    "text.ckpt": "{path} is not a checkpoint, or a damaged one",
    "raw.ckpt": "{path} is not calibrated, so it has no limits",
    "other.ckpt": "{path} is not the checkpoint of a CCL model",
}


def test_what_has_no_limits_is_refused_by_its_name_and_stays_as_it_is(folder: Path) -> None:
    spoil(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name, message in REFUSED.items():
        path = folder / name
        weights = path.with_suffix(".bin" if path.suffix == ".xml" else ".onnx.data").name
        with pytest.raises(InputError, match=re.escape(message.format(path=path, weights=weights))) as caught:
            set_false_alarm_rate(path, 0.02)
        assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("rate", [0, -1, 0.51, float("nan")])
def test_a_rate_out_of_range_is_refused_before_any_file_is_read(rate: float) -> None:
    with pytest.raises(InputError, match="rate"):
        set_false_alarm_rate("absent.ckpt", rate)
