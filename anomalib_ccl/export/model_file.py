"""Exported models as they lie on disk: what they say of themselves, and the limits in their graph."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from anomalib_ccl.errors import InputError
from anomalib_ccl.export.replacing import replacing

if TYPE_CHECKING:
    import openvino

#: Tensors of an exported model, and the keys of its metadata that are not fields of :class:`Limits`.
CLASS_INDEX = "class_index"
RAW_SCORE = "raw_score"
PRODUCT = "product"
PIXEL_RANGES = "pixel_ranges"
#: The constant of the graph with the limit of each class and, last, that of unknown products.
LIMITS = "limits"

# Where OpenVINO keeps the metadata of an ONNX file.
_PLACE = "framework"


class Limits(NamedTuple):
    """What a trained model knows of the scores of its products, as plain data.

    Attributes:
        class_names: The names of the K products, in the order of ``class_index``.
        limits: The raw score that is the threshold of each product and, last, of unknown ones.
        quantiles: The limits at the rates of :mod:`anomalib_ccl.model.limits`, a row for each product and, last, for
            unknown ones.
        false_alarm_rate: Share of normal images that are meant to exceed the limits.
        image_size: Height and width that the model resizes images to; None if it does not.
        version: Version of this package that exported the model; None for a checkpoint.
    """

    class_names: list[str]
    limits: list[float]
    quantiles: list[list[float]]
    false_alarm_rate: float
    image_size: list[int] | None
    version: str | None


def read_model(path: str | Path, or_else: str = "") -> "openvino.Model":
    """Read an exported model; ``or_else`` ends the message about another file."""
    import openvino  # noqa: PLC0415  # as anomalib does

    path = Path(path)
    if path.suffix not in {".xml", ".onnx"} or not path.is_file():
        msg = (
            f"{path} is no exported model: give the .xml or .onnx file that `anomalib export --model CCL` makes with "
            f"--export_type openvino or onnx{or_else}"
        )
        raise InputError(msg)
    try:
        return openvino.Core().read_model(path)
    except RuntimeError as error:
        weights = path.with_suffix(".bin" if path.suffix == ".xml" else ".onnx.data").name
        msg = (
            f"{path} cannot be read: it, or {weights} in the same folder, is missing, damaged or of another model; "
            "copy both from the folder of the export again"
        )
        raise InputError(msg) from error


def metadata_of(model: "openvino.Model") -> dict[str, object]:
    """Read what an exported model says of itself."""
    if not model.has_rt_info([_PLACE, "class_names"]):
        return {}
    known = [key for key in (*Limits._fields, PIXEL_RANGES) if model.has_rt_info([_PLACE, key])]
    return {key: json.loads(model.get_rt_info([_PLACE, key]).value) for key in known}


def read_exported(path: str | Path) -> Limits:
    """Read the limits of an exported model."""
    metadata = metadata_of(read_model(path, ", or the .ckpt of a training"))
    metadata.pop(PIXEL_RANGES, None)
    if metadata.keys() != set(Limits._fields):
        msg = (
            f"{path} has no limits: it is not the export of a CCL model trained with calibrate=True; "
            "give a file that `anomalib export --model CCL` wrote"
        )
        raise InputError(msg)
    return Limits(**metadata)  # type: ignore[arg-type]


def write_exported(path: str | Path, limits: Limits, **others: object) -> None:
    """Write limits into an exported model, its metadata and its graph."""
    path, values = Path(path), {**limits._asdict(), **others}
    metadata = {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}
    table = np.array(limits.limits, np.float32)
    with replacing(path) as target:
        write = _write_onnx if path.suffix == ".onnx" else _write_openvino
        if not write(path, target, table, metadata):
            msg = f"the graph of {path} has no constant {LIMITS!r} any more, another tool changed it; export it again"
            raise InputError(msg)


def _write_onnx(path: Path, target: Path, table: NDArray[np.float32], metadata: dict[str, str]) -> bool:
    """Write a copy of an ONNX file with other limits, kept in the file itself; False if the graph has none."""
    model = onnx.load(path, load_external_data=False)
    found = [constant for constant in model.graph.initializer if constant.name == LIMITS]
    for constant in found:
        constant.CopyFrom(onnx.numpy_helper.from_array(table, LIMITS))
    kept = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**kept, **metadata})
    onnx.save(model, target)
    return bool(found)


def _write_openvino(path: Path, target: Path, table: NDArray[np.float32], metadata: dict[str, str]) -> bool:
    """Write a copy of an OpenVINO file with other limits; False if the graph has none."""
    import openvino  # noqa: PLC0415  # as anomalib does
    from openvino import opset13 as operations  # noqa: PLC0415

    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # for the file to be replaced
    model = core.read_model(path)
    old = [node for node in model.get_ordered_ops() if node.friendly_name == LIMITS]
    takers = [taker for node in old for taker in node.output(0).get_target_inputs()]
    for node in old:
        node.set_friendly_name(f"{LIMITS}_before")
    constant = operations.constant(table, name=LIMITS)
    # In half precision and in 8 bits, what makes floats of the constant lies between it and the look-up.
    while takers:
        taker = takers.pop()
        if taker.get_node().get_type_name() == "Gather":
            taker.replace_source_output(constant.output(0))
        else:
            takers.extend(taker.get_node().output(0).get_target_inputs())
    for key, value in metadata.items():
        model.set_rt_info(value, [_PLACE, key])
    openvino.save_model(model, target, compress_to_fp16=False)
    return bool(old)
