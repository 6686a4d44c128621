"""From a trained model to a file: PyTorch, ONNX and OpenVINO."""

from copy import deepcopy
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import onnx
from anomalib.data import AnomalibDataModule, InferenceBatch
from anomalib.deploy import CompressionType
from anomalib.models.components import AnomalibModule
from anomalib.models.components.base.export_mixin import ExportMixin
from torch import Tensor, nn

from anomalib_ccl.data.reading import PixelRanges
from anomalib_ccl.errors import InputError
from anomalib_ccl.export.model_file import CLASS_INDEX, LIMITS, PIXEL_RANGES, PRODUCT, RAW_SCORE, Limits, write_exported
from anomalib_ccl.export.quantization import check_compression, quantize, validation_images
from anomalib_ccl.model.torch_model import CCLModel

if TYPE_CHECKING:

    class _Base(AnomalibModule):
        """Not a base class when it runs: anomalib lists the direct subclasses of its own as models."""

        @property
        def class_names(self) -> list[str]: ...

else:
    _Base = object

# Outputs of the network that anomalib's inferencers do not know, and refuse.
_OWN_OUTPUTS = (CLASS_INDEX, RAW_SCORE, "embedding")
# What the exporter calls the limits, after their place in the model.
_EXPORTED_LIMITS = "model.calibration.limits"


class CCLExport(_Base):
    """Exports a model as anomalib does, with what is needed to name products and to set limits in the file."""

    model: CCLModel
    pixel_ranges: PixelRanges | None

    def to_torch(self, export_root: Path | str, model_file_name: str = "model") -> Path:
        """Export the model with PyTorch, without gradients, for anomalib's ``TorchInferencer``.

        Args:
            export_root: Path to the output folder.
            model_file_name: Name of the exported model.

        Returns:
            Path to the ``.pt`` file.
        """
        return TorchExport(self).to_torch(export_root, model_file_name)

    def to_onnx(  # type: ignore[override]
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        class_output: bool = False,
        product_input: bool = False,
        **kwargs: Any,  # noqa: ANN401  # passed through
    ) -> Path:
        """Export the model to ONNX; see anomalib's ``ExportMixin.to_onnx``.

        A calibrated model's file also holds, as JSON in its metadata, the fields of
        :class:`~anomalib_ccl.export.model_file.Limits` and the ``pixel_ranges`` of its training images, and the class
        index of each image as the inner tensor ``class_index``. An export to OpenVINO takes them over.

        Args:
            export_root: Path to the output folder.
            model_file_name: Name of the exported model.
            input_size: Height and width of the images, in pixels, or none for any size.
            class_output: Whether there are the outputs ``class_index``, of shape ``(B,)``, and ``raw_score``, of shape
                ``(B, 1)``, the score before calibration. anomalib's own inferencers refuse them.
            product_input: Whether there is the input ``product``, integers of shape ``(B,)`` or ``(1,)``: the index of
                the class by whose limit to score; below 0, the model recognises the class.
            **kwargs: Passed to ``torch.onnx.export``. ``opset_version`` defaults to 18, the lowest that torch's
                exporter has; from anomalib's default of 14 it prints a failed conversion before it falls back to 18.

        Returns:
            Path to the ONNX file.

        Raises:
            InputError: If the model has no classes to put out or in, because it is not calibrated.
        """
        if (class_output or product_input) and not self.model.calibration.is_calibrated:
            msg = "class_output and product_input need a model that knows products: train it with calibrate=True"
            raise InputError(msg)
        options = {"opset_version": 18, "verbose": False, **kwargs}
        path = super().to_onnx(export_root, model_file_name, input_size, **options)
        self._finish(path, class_output, product_input)
        return path

    def to_openvino(  # type: ignore[override]
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        compression_type: CompressionType | None = None,
        datamodule: AnomalibDataModule | None = None,
        **kwargs: Any,  # noqa: ANN401  # passed through
    ) -> Path:
        """Export the model to OpenVINO; see anomalib's ``ExportMixin.to_openvino``.

        ``INT8_PTQ`` quantises the network alone, where anomalib quantises the arithmetic of the scores too. Limits are
        in single precision in every form.

        Args:
            export_root: Path to the output folder.
            model_file_name: Name of the exported model.
            input_size: Height and width of the images, in pixels, or none for any size.
            compression_type: Type of compression, any but ``INT8_ACQ``.
            datamodule: Its validation images give the ranges of values for ``INT8_PTQ``; they are resized to the
                ``input_size`` where there is one.
            **kwargs: Passed to anomalib; ``onnx_kwargs`` are those of :meth:`to_onnx`, ``class_output`` among them.

        Returns:
            Path to the ``.xml`` file.

        Raises:
            InputError: As :meth:`to_onnx`; also if nncf is missing, or there is no validation image to quantise by.
        """
        if compression_type is not None:
            check_compression(compression_type)
        # OpenVINO does itself what the exporter does in hundreds of steps, each of which is a message of its log, and
        # nncf cannot read what that makes of a memory.
        kwargs["onnx_kwargs"] = {"optimize": False, **(kwargs.get("onnx_kwargs") or {})}
        if compression_type == CompressionType.INT8_PTQ:
            images = validation_images(datamodule, self.pixel_ranges)
            with TemporaryDirectory() as folder:
                exported = super().to_openvino(folder, model_file_name, input_size, **kwargs)
                path = Path(export_root) / exported.relative_to(folder)
                quantize(exported, path, images)
            return path
        path = super().to_openvino(export_root, model_file_name, input_size, compression_type, datamodule, **kwargs)
        if compression_type is not None and self.model.calibration.is_calibrated:
            write_exported(path, self._limits())
        return path

    def _limits(self) -> Limits:
        """Give what a calibrated model knows of the scores of its products."""
        calibration = self.model.calibration
        return Limits(
            class_names=list(self.class_names),
            limits=calibration.limits.tolist(),
            quantiles=calibration.quantiles.tolist(),
            false_alarm_rate=calibration.false_alarm_rate,
            image_size=None if self.input_size is None else list(self.input_size),
            version=version("anomalib-ccl"),
        )

    def _finish(self, path: Path, class_output: bool, product_input: bool) -> None:
        """Leave an ONNX file the inputs and outputs asked for, and write the limits under their own name."""
        model = onnx.load(path, load_external_data=False)
        asked = (CLASS_INDEX, RAW_SCORE) if class_output else ()
        for output in [value for value in model.graph.output if value.name in _OWN_OUTPUTS and value.name not in asked]:
            model.graph.output.remove(output)
        if product_input:
            _add_product(model.graph)
        for constant in model.graph.initializer:
            constant.name = LIMITS if constant.name == _EXPORTED_LIMITS else constant.name
        for node in model.graph.node:
            node.input[:] = [LIMITS if name == _EXPORTED_LIMITS else name for name in node.input]
        onnx.save(model, path)
        if self.model.calibration.is_calibrated:
            ranges = {} if self.pixel_ranges is None else {PIXEL_RANGES: asdict(self.pixel_ranges)}
            write_exported(path, self._limits(), **ranges)


class TorchExport(ExportMixin, nn.Module):
    """A copy of a trained model that gives what anomalib's ``TorchInferencer`` takes, and needs no gradients."""

    def __init__(self, trained: nn.Module) -> None:
        super().__init__()
        self.trained = deepcopy(trained).eval().requires_grad_(False)

    def forward(self, images: Tensor, product: Tensor | None = None) -> InferenceBatch:
        """Score images."""
        prediction = self.trained(images, product)
        return InferenceBatch(**{name: getattr(prediction, name) for name in InferenceBatch._fields})


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
