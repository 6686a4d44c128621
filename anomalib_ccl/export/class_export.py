"""The classes in an exported model."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import onnx
from anomalib.data import AnomalibDataModule
from anomalib.deploy import CompressionType
from anomalib.models.components import AnomalibModule
from torch import Tensor

from anomalib_ccl.classes.training_classes import TrainingClasses
from anomalib_ccl.data.ranges import PixelRanges
from anomalib_ccl.export.inferencer import CLASS_INDEX, CLASS_NAMES, PIXEL_RANGES
from anomalib_ccl.export.quantization import quantize

if TYPE_CHECKING:
    # Not a base class: anomalib lists the direct subclasses of its own as models.
    Base = AnomalibModule
else:
    Base = object


class ClassExport(Base):
    """Exports a calibrated model so that the class of each image can be told from the file."""

    model: Any  # with a ``calibration``
    classes: TrainingClasses
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

        A calibrated model's file also holds, as JSON in its metadata, the ``class_names`` and the ``pixel_ranges`` of
        its training images, and the class index of each image as the inner tensor ``class_index``. An export to
        OpenVINO takes them over.

        Args:
            *args: Passed to anomalib.
            **kwargs: Passed to anomalib. ``opset_version`` defaults to 18, the lowest that torch's exporter has;
                from anomalib's default of 14 it prints a failed conversion before it falls back to 18.

        Returns:
            Path to the ONNX file.
        """
        # Each of the exporter's hundreds of small optimisations is a message to those whose root logger shows them.
        logging.getLogger("onnx_ir").setLevel(logging.WARNING)
        kwargs = {"opset_version": 18, **kwargs}
        if not self.model.calibration.is_calibrated:
            return super().to_onnx(*args, **kwargs)
        with _class_index_as_output(self):
            path = super().to_onnx(*args, **kwargs)
        _store(path, self.classes.names, self.pixel_ranges)
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

        ``INT8_PTQ`` quantises the network alone, where anomalib quantises the arithmetic of the scores too.

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
        if compression_type != CompressionType.INT8_PTQ or datamodule is None:
            return super().to_openvino(export_root, model_file_name, input_size, compression_type, datamodule, **kwargs)
        path = super().to_openvino(export_root, model_file_name, input_size, **kwargs)
        quantize(path, datamodule)
        return path


class _WithClass(NamedTuple):
    """The fields of anomalib's ``InferenceBatch``, and the class index of each image."""

    pred_score: Tensor | None
    pred_label: Tensor | None
    anomaly_map: Tensor | None
    pred_mask: Tensor | None
    class_index: Tensor


@contextmanager
def _class_index_as_output(model: ClassExport) -> Iterator[None]:
    """Have a calibrated model return the class of each image too, so that the exporter gives that tensor its name."""
    found: list[Tensor] = []
    with (
        model.model.calibration.register_forward_hook(lambda *call: found.append(call[-1].class_index)),
        model.register_forward_hook(lambda *call: _WithClass(**call[-1]._asdict(), class_index=found.pop())),
    ):
        yield


def _store(path: Path, names: list[str], ranges: PixelRanges | None) -> None:
    """Write class names and ranges into an ONNX file, and leave the class index to the inside of its graph.

    anomalib's inferencers refuse outputs that they do not know.
    """
    model = onnx.load(path, load_external_data=False)
    (index,) = (output for output in model.graph.output if output.name == CLASS_INDEX)
    model.graph.output.remove(index)
    metadata = {CLASS_NAMES: names} if ranges is None else {CLASS_NAMES: names, PIXEL_RANGES: asdict(ranges)}
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.save(model, path)
