"""The classes in an exported model."""

import json
import logging
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from anomalib.data import AnomalibDataModule
from anomalib.deploy import CompressionType
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from numpy.typing import NDArray

from anomalib_ccl.classes.training_classes import TrainingClasses
from anomalib_ccl.data.ranges import PixelRanges
from anomalib_ccl.export.exported_scores import TABLES, has_tables, prepared_for_export, thresholds_of
from anomalib_ccl.export.limits_file import (
    CLASS_INDEX,
    PIXEL_RANGES,
    PRODUCT,
    RAW_SCORE,
    Limits,
    set_tables,
    tables_of,
    write_exported,
)
from anomalib_ccl.export.quantization import quantize

if TYPE_CHECKING:
    # Not a base class: anomalib lists the direct subclasses of its own as models.
    Base = AnomalibModule
else:
    Base = object


class ClassExport(Base):
    """Exports a calibrated model so that the class of each image can be told, and its limits be set, in the file.

    Attributes:
        class_output: Whether ONNX and OpenVINO exports have the outputs ``class_index``, of shape ``(B,)``, and
            ``raw_score``, of shape ``(B, 1)``, the score before calibration.
        product_input: Whether they have the input ``product``, integers of shape ``(B,)`` or ``(1,)``: the index of the
            class by whose limit to score; below 0, the model recognises the class.
    """

    model: Any  # with a ``calibration``
    classes: TrainingClasses
    class_output: bool = False
    product_input: bool = False
    # Black and white of the images of the training, where MultiCategory read them.
    pixel_ranges: PixelRanges | None = None

    def to_torch(self, *args: Any, **kwargs: Any) -> Path:  # noqa: ANN401
        """Export the model with PyTorch; see anomalib's ``ExportMixin.to_torch``.

        The exported model needs no gradient: anomalib's ``TorchInferencer`` would ask for one.

        Args:
            *args: Passed to anomalib.
            **kwargs: Passed to anomalib.

        Returns:
            Path to the ``.pt`` file.
        """
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.requires_grad = False
        try:
            return super().to_torch(*args, **kwargs)
        finally:
            for parameter in trained:
                parameter.requires_grad = True

    def to_onnx(self, *args: Any, **kwargs: Any) -> Path:  # type: ignore[override]  # noqa: ANN401
        """Export the model to ONNX; see anomalib's ``ExportMixin.to_onnx``.

        A calibrated model's file also holds, as JSON in its metadata, the fields of
        :class:`~anomalib_ccl.export.limits_file.Limits` and the ``pixel_ranges`` of its training images, and the class
        index of each image as the inner tensor ``class_index``. An export to OpenVINO takes them over.

        Args:
            *args: Passed to anomalib.
            **kwargs: Passed to anomalib. ``opset_version`` defaults to 18, the lowest that torch's exporter has;
                from anomalib's default of 14 it prints a failed conversion before it falls back to 18.

        Returns:
            Path to the ONNX file.

        Raises:
            ValueError: If the model has no classes to put out or in, because it is not calibrated.
        """
        # Each of the exporter's hundreds of small optimisations is a message to those whose root logger shows them.
        logging.getLogger("onnx_ir").setLevel(logging.WARNING)
        kwargs = {"opset_version": 18, **kwargs}
        if not self.model.calibration.is_calibrated:
            if self.class_output or self.product_input:
                msg = "class_output and product_input need a model that knows products: train it with calibrate=True"
                raise ValueError(msg)
            return super().to_onnx(*args, **kwargs)
        with prepared_for_export(self):
            path = super().to_onnx(*args, **kwargs)
        self._finish(path)
        return path

    def to_openvino(  # type: ignore[override]
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        compression_type: CompressionType | None = None,
        datamodule: AnomalibDataModule | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Path:
        """Export the model to OpenVINO; see anomalib's ``ExportMixin.to_openvino``.

        ``INT8_PTQ`` quantises the network alone, where anomalib quantises the arithmetic of the scores too. Limits and
        thresholds are in single precision in every form.

        Args:
            export_root: Path to the output folder.
            model_file_name: Name of the exported model.
            input_size: Height and width of the images, in pixels, or none for any size.
            compression_type: Type of compression.
            datamodule: Its validation images give the ranges of values for ``INT8_PTQ``.
            **kwargs: Passed to anomalib.

        Returns:
            Path to the ``.xml`` file.
        """
        if compression_type == CompressionType.INT8_PTQ and datamodule is not None:
            path = super().to_openvino(export_root, model_file_name, input_size, **kwargs)
            quantize(path, datamodule)
            return path
        path = super().to_openvino(export_root, model_file_name, input_size, compression_type, datamodule, **kwargs)
        if compression_type is not None and self.model.calibration.is_calibrated:
            write_exported(path, self.known_limits(), self._tables())
        return path

    def known_limits(self) -> Limits:
        """Tell what a calibrated model knows of the scores of its products, as plain data."""
        calibration, post_processor = self.model.calibration, self.post_processor
        location, scale = calibration.statistics()
        threshold = pixel_threshold = 1.0 if post_processor is None else None
        if isinstance(post_processor, PostProcessor) and has_tables(post_processor):
            threshold, _, pixel_threshold, _ = (value.item() for value in thresholds_of(post_processor).values())
        return Limits(
            class_names=self.classes.names,
            limits=calibration.limits().tolist(),
            location=location.tolist(),
            scale=scale.tolist(),
            false_alarm_rate=calibration.false_alarm_rate,
            threshold=threshold,
            pixel_threshold=pixel_threshold,
            image_size=None if self.input_size is None else list(self.input_size),
            version=version("anomalib-ccl"),
        )

    def _tables(self) -> dict[str, NDArray[np.float32]]:
        thresholds = thresholds_of(self.post_processor) if isinstance(self.post_processor, PostProcessor) else {}
        values = {name: value.item() for name, value in thresholds.items()}
        return tables_of(self.model.calibration.limits().tolist(), values)

    def _finish(self, path: Path) -> None:
        """Write the metadata into an ONNX file, name its tables, and leave it the inputs and outputs asked for."""
        model = onnx.load(path, load_external_data=False)
        if not self.class_output:
            # anomalib's inferencers refuse outputs that they do not know.
            for output in [output for output in model.graph.output if output.name in (CLASS_INDEX, RAW_SCORE)]:
                model.graph.output.remove(output)
        _name_tables(model.graph, path.parent)
        if self.product_input:
            _add_product(model.graph)
        metadata = self.known_limits()._asdict()
        if self.pixel_ranges is not None:
            metadata[PIXEL_RANGES] = asdict(self.pixel_ranges)
        properties = {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}
        onnx.helper.set_model_props(model, properties)
        onnx.save(model, path)


def _name_tables(graph: onnx.GraphProto, folder: Path) -> None:
    """Give the tables of limits and thresholds their names, and keep them in the file itself."""
    for constant in graph.initializer:
        if constant.name in TABLES:
            values = onnx.numpy_helper.to_array(constant, str(folder))
            constant.name = TABLES[constant.name]
            set_tables(graph, {constant.name: values})
    for node in graph.node:
        node.input[:] = [TABLES.get(name, name) for name in node.input]


def _add_product(graph: onnx.GraphProto) -> None:
    """Have an input take the place of the recognised class where it is not below 0."""
    recognised = f"recognised_{CLASS_INDEX}"
    (place,) = (place for place, node in enumerate(graph.node) if CLASS_INDEX in node.output)
    graph.node[place].output[:] = [recognised if name == CLASS_INDEX else name for name in graph.node[place].output]
    graph.initializer.append(onnx.helper.make_tensor("no_product", onnx.TensorProto.INT64, [], [0]))
    added = [
        onnx.helper.make_node("Less", [PRODUCT, "no_product"], ["product_is_unknown"]),
        onnx.helper.make_node("Where", ["product_is_unknown", recognised, PRODUCT], [CLASS_INDEX]),
    ]
    for offset, node in enumerate(added, start=1):
        graph.node.insert(place + offset, node)
    graph.input.append(onnx.helper.make_tensor_value_info(PRODUCT, onnx.TensorProto.INT64, ["products"]))
