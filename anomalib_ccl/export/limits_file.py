"""The limits that an exported model was given, read from its file and written into it."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from anomalib_ccl.export.model_file import read_model

if TYPE_CHECKING:
    import openvino

# What an exported file has: tensors of these names, and metadata under these keys and those of Limits.
CLASS_INDEX = "class_index"
RAW_SCORE = "raw_score"
PRODUCT = "product"
CLASS_NAMES = "class_names"
PIXEL_RANGES = "pixel_ranges"
# The constants of its graph that a false-alarm rate sets, each with a value for each class and for unknown products.
LIMITS = "limits"
THRESHOLDS = ("image_threshold", "image_range", "pixel_threshold", "pixel_range")
# Their values where the threshold is the limit; see anomalib_ccl.training.post_processor.
AT_LIMIT = dict(zip(THRESHOLDS, (1.0, 2.0, 1.0, 2.0), strict=True))

# Where OpenVINO has the metadata of an ONNX file, and keeps it in every precision.
_PLACE = "framework"


class Limits(NamedTuple):
    """What a trained model knows of the scores of its products, as plain data.

    Attributes:
        class_names: The names of the K products, in the order of ``class_index``.
        limits: The raw score that calibration makes 1, of each product and, last, of unknown ones.
        location: The level of the raw score of normal images, in the same order.
        scale: Its spread, in the same order.
        false_alarm_rate: Share of normal images that are meant to exceed the limits.
        threshold: The calibrated score above which an image is called anomalous, 1 for the limit itself; None if the
            model's own post-processor keeps it to itself.
        pixel_threshold: The same of the map.
        image_size: Height and width that the model resizes images to; None if it does not.
        version: That of this package that wrote the file; None for a checkpoint.
    """

    class_names: list[str]
    limits: list[float]
    location: list[float]
    scale: list[float]
    false_alarm_rate: float
    threshold: float | None
    pixel_threshold: float | None
    image_size: list[int] | None
    version: str | None


def metadata_of(model: "openvino.Model", key: str) -> Any:  # noqa: ANN401
    """Find out what an exported model says of itself.

    Args:
        model: The model, read from an OpenVINO or ONNX file.
        key: What to tell.

    Returns:
        The value, plain data; None if it does not say.
    """
    place = [_PLACE, key]
    return json.loads(model.get_rt_info(place).value) if model.has_rt_info(place) else None


def read_exported(path: str | Path) -> Limits:
    """Read the limits of an exported model.

    Args:
        path: An ``.xml`` or ``.onnx`` file.

    Returns:
        The limits.

    Raises:
        FileNotFoundError: If a file of the model is missing.
        ValueError: If it cannot be read, is no CCL model that was calibrated, or one of an earlier version.
    """
    model = read_model(path)
    if metadata_of(model, CLASS_NAMES) is None:
        msg = (
            f"{path} has no limits: it is not the export of a CCL model trained with calibrate=True; "
            "give a file that `anomalib export --model CCL` wrote"
        )
        raise ValueError(msg)
    if metadata_of(model, LIMITS) is None:
        msg = f"{path} was exported by an earlier version, which left the limits out; export the checkpoint again"
        raise ValueError(msg)
    return Limits(**{key: metadata_of(model, key) for key in Limits._fields})


def write_exported(path: str | Path, limits: Limits, tables: dict[str, NDArray[np.float32]]) -> None:
    """Write limits into an exported model, its metadata and its graph.

    Args:
        path: An ``.xml`` or ``.onnx`` file, which is replaced when all is written.
        limits: What its metadata say from then on.
        tables: New values of the constants of its graph, by name; those that the graph lacks are left out.

    Raises:
        ValueError: If the graph lacks the limits.
    """
    path = Path(path)
    metadata = {key: json.dumps(value, ensure_ascii=False) for key, value in limits._asdict().items()}
    # Beside it, because only within a file system a file takes another one's place at once.
    with TemporaryDirectory(dir=path.parent) as folder:
        (_write_onnx if path.suffix == ".onnx" else _write_openvino)(path, Path(folder) / path.name, metadata, tables)
        # The weights first: they are the same in the same order, which the old .xml could still read.
        for written in sorted(Path(folder).iterdir()):
            written.replace(path.parent / written.name)


def tables_of(limits: list[float], thresholds: Mapping[str, float]) -> dict[str, NDArray[np.float32]]:
    """Make the constants of a graph from limits and thresholds.

    Args:
        limits: The limit of each class and, last, that of unknown products.
        thresholds: The values of :data:`THRESHOLDS`, alike for all classes.

    Returns:
        The values of each constant, by its name.

    Example:
        >>> tables_of([2.0, 4.0], AT_LIMIT)["image_range"]
        array([2., 2.], dtype=float32)
    """
    tables = {name: np.full(len(limits), value, np.float32) for name, value in thresholds.items()}
    return {LIMITS: np.array(limits, np.float32), **tables}


def set_tables(graph: onnx.GraphProto, tables: dict[str, NDArray[np.float32]]) -> set[str]:
    """Set constants of an ONNX graph, and keep them in the file itself.

    Args:
        graph: The graph, changed in place.
        tables: Their values, by name.

    Returns:
        The names of those that were found.
    """
    found = [constant for constant in graph.initializer if constant.name in tables]
    for constant in found:
        constant.CopyFrom(onnx.numpy_helper.from_array(tables[constant.name], constant.name))
    return {constant.name for constant in found}


def _write_onnx(path: Path, target: Path, metadata: dict[str, str], tables: dict[str, NDArray[np.float32]]) -> None:
    model = onnx.load(path, load_external_data=False)
    _check_found(path, set_tables(model.graph, tables))
    onnx.helper.set_model_props(model, {**{entry.key: entry.value for entry in model.metadata_props}, **metadata})
    onnx.save(model, target)


def _write_openvino(path: Path, target: Path, metadata: dict[str, str], tables: dict[str, NDArray[np.float32]]) -> None:
    import openvino  # noqa: PLC0415  # as anomalib does
    from openvino import opset13 as operations  # noqa: PLC0415

    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # for the file to be replaced
    model = core.read_model(path)
    nodes = {node.friendly_name: node for node in model.get_ordered_ops() if node.friendly_name in tables}
    _check_found(path, set(nodes))
    for name, node in nodes.items():
        constant = operations.constant(tables[name], name=name)
        node.set_friendly_name(f"{name}_before")
        # In half precision and in 8 bits, what makes floats of the constant lies between.
        takers = list(node.output(0).get_target_inputs())
        while takers:
            taker = takers.pop()
            if taker.get_node().get_type_name() == "Gather":
                taker.replace_source_output(constant.output(0))
            else:
                takers.extend(taker.get_node().output(0).get_target_inputs())
    for key, value in metadata.items():
        model.set_rt_info(value, [_PLACE, key])
    openvino.save_model(model, target, compress_to_fp16=False)


def _check_found(path: Path, found: set[str]) -> None:
    if LIMITS not in found:
        msg = f"the graph of {path} has no constant {LIMITS!r} any more, another tool has changed it; export it again"
        raise ValueError(msg)
