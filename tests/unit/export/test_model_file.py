"""Exported models are read; what is none, or not whole, is refused in one sentence."""

import re

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from anomalib_ccl.export.model_file import read_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``model.xml`` and ``model.onnx``, which add 1000 numbers, and what becomes of them when they are copied badly."""
    folder = tmp_path_factory.mktemp("models")
    numbers = numpy_helper.from_array(np.arange(1000, dtype=np.float32), "numbers")
    image, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1000]) for name in ("image", "result"))
    graph = helper.make_graph(
        [helper.make_node("Add", ["image", "numbers"], ["result"])], "g", [image], [result], [numbers]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 0}
    onnx.save(model, folder / "model.onnx", **options)
    openvino.save_model(openvino.convert_model(folder / "model.onnx"), folder / "model.xml", compress_to_fp16=False)
    xml, weights, of_onnx = ((folder / name).read_bytes() for name in ("model.xml", "model.bin", "model.onnx"))
    contents = {
        "no_weights.xml": xml,
        "cut_weights.xml": xml,
        "cut_weights.bin": weights[:1000],
        "empty_weights.xml": xml,
        "empty_weights.bin": b"",
        "cut.xml": xml[: len(xml) // 2],
        "cut.bin": weights,
        "text.xml": b"not a model",
        "text.bin": weights,
        "empty.xml": b"",
        "empty.bin": weights,
        "cut.onnx": of_onnx[: len(of_onnx) // 2],
        "empty.onnx": b"",
        "text.onnx": b"not a model",
        "model.pt": b"PK",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder.xml").mkdir()
    (folder / "alone").mkdir()
    (folder / "alone/model.onnx").write_bytes(of_onnx)
    return folder


@pytest.mark.parametrize("name", ["model.xml", "model.onnx"])
def test_exported_models_are_read(folder, name):
    for path in (folder / name, str(folder / name)):
        assert read_model(path).input(0).shape == [1000]


DAMAGED = ["cut_weights.xml", "empty_weights.xml", "cut.xml", "text.xml", "empty.xml", "cut.onnx", "empty.onnx"]


@pytest.mark.parametrize("name", [*DAMAGED, "text.onnx", "alone/model.onnx"])
def test_a_damaged_model_is_refused_in_one_sentence_that_names_both_its_files(folder, name, capfd):
    path = folder / name
    weights = path.with_suffix(".bin" if path.suffix == ".xml" else ".onnx.data").name
    with pytest.raises(ValueError, match=re.escape(f"{path} cannot be read: it, or {weights} beside it,")) as caught:
        read_model(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["missing.xml", "missing.onnx", "folder.xml"])
def test_a_missing_model_is_refused_by_its_path(folder, name):
    with pytest.raises(FileNotFoundError, match=re.escape(f"there is no exported model {folder / name}")):
        read_model(folder / name)


def test_a_model_without_its_weights_is_refused_with_their_name(folder):
    with pytest.raises(FileNotFoundError, match=r"no_weights\.xml lacks its weights: copy no_weights\.bin too"):
        read_model(folder / "no_weights.xml")


@pytest.mark.parametrize("name", ["model.bin", "missing.bin", "model.pt", "model.ckpt", "."])
def test_files_of_other_kinds_are_refused_with_those_that_are_read(folder, name):
    with pytest.raises(
        ValueError, match=re.escape(f"{folder / name} is no model that OpenVINO runs: give the .xml or")
    ):
        read_model(folder / name)
