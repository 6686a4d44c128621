"""Exported models that name the product in an image."""

import threading
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from anomalib.data import NumpyImageBatch
from anomalib.deploy import OpenVINOInferencer
from numpy.typing import NDArray

from anomalib_ccl.data.reading import PixelRanges
from anomalib_ccl.errors import InputError
from anomalib_ccl.export.frames import Frame, to_batch
from anomalib_ccl.export.model_file import CLASS_INDEX, PIXEL_RANGES, PRODUCT, RAW_SCORE, metadata_of, read_model

if TYPE_CHECKING:
    import openvino
    from openvino.utils.data_helpers.wrappers import OVDict


class CCLInferencer(OpenVINOInferencer):
    """anomalib's OpenVINO inferencer, which also names the product in each image, and takes any frame of a camera.

    It reads what ``anomalib export`` makes of a CCL model, in any precision; nothing else need be copied along. The
    file has the outputs of every anomalib model, and works with anomalib's own inferencer too. Unlike that one, this
    leaves no cache in the working directory; ``config={"CACHE_DIR": ...}`` makes one.

    Several threads may use one inferencer. A copy, or one that was pickled, loads its file again.

    Args:
        path: The exported model: an ``.xml`` file with its ``.bin`` in the same folder, or an ``.onnx`` file with its
            ``.onnx.data``.
        device: Where OpenVINO computes: "AUTO", "CPU", "GPU" or "NPU".
        config: Properties for OpenVINO, such as ``{"INFERENCE_PRECISION_HINT": "f32"}``.
        image_size: Height and width of all images to come, in pixels, if they come one by one and are all alike.
            OpenVINO then prepares for nothing else, which takes a fifth off the time of tf_efficientnet_lite0.

    Attributes:
        class_names: The names of the classes that the model knows.

    Raises:
        InputError: If a file of the model is missing or cannot be read, if the model knows no products or was exported
            for another size than ``image_size``, or if OpenVINO cannot run it on the device.

    Example:
        >>> inferencer = CCLInferencer("weights/openvino/model.xml", device="CPU")  # doctest: +SKIP
        >>> inferencer.predict("image.png").explanation  # doctest: +SKIP
        ['brick']
    """

    class_names: list[str]

    def __init__(
        self,
        path: str | Path,
        device: str = "AUTO",
        config: dict | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        self.path, self.image_size = path, image_size
        # OpenVINO refuses a request that is in use.
        self._of_thread = threading.local()
        super().__init__(path, device, config)

    def __reduce__(self) -> tuple:
        return type(self), (self.path, self.device, self.config, self.image_size)

    def load_model(  # type: ignore[override]
        self, path: str | Path
    ) -> "tuple[openvino.ConstOutput, openvino.ConstOutput, openvino.CompiledModel]":
        """Load a model, give it the input ``product``, and make the class of each image an output; see anomalib's."""
        import openvino  # noqa: PLC0415  # as anomalib does

        model = read_model(path)
        metadata = metadata_of(model)
        if not metadata:
            msg = (
                f"{path} cannot name products: it is not the export of a CCL model trained with calibrate=True. "
                "Export such a model, or use anomalib's OpenVINOInferencer."
            )
            raise InputError(msg)
        self.class_names = metadata["class_names"]  # type: ignore[assignment]
        ranges: dict | None = metadata.get(PIXEL_RANGES)  # type: ignore[assignment]
        self._ranges = None if ranges is None else PixelRanges(**{k: v and tuple(v) for k, v in ranges.items()})
        if PRODUCT not in {name for given in model.inputs for name in given.names}:
            _add_product(model)
        if CLASS_INDEX not in {name for output in model.outputs for name in output.names}:
            model.add_outputs(CLASS_INDEX)
        # In a model compiled for one size, they may have names of other tensors besides.
        self._fields = [output.any_name for output in model.outputs]
        core = openvino.Core()
        try:
            if self.image_size is not None:
                _fix_size(model, self.image_size)
            compiled = core.compile_model(model, self.device, self.config)
        except (RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1]
            if isinstance(error, TypeError):  # of the bindings, which print all that they accept
                reason = "config must be a dict, and image_size two whole numbers of pixels"
            msg = (
                f"OpenVINO cannot run {path} with device={self.device!r}, config={self.config!r}, image_size="
                f"{self.image_size!r}: {reason}; devices here: {', '.join(core.available_devices)}"
            )
            raise InputError(msg) from error
        return compiled.input(0), compiled.output(0), compiled

    def pre_process(self, image: Frame) -> NDArray[np.float32]:  # type: ignore[override]
        """Make an array of shape ``(B, 3, H, W)``, in [0, 1], of the image or images; see :meth:`predict`."""
        images = to_batch(image, self._ranges)
        taken, option = self.input_blob.partial_shape, "image_size" if self.image_size else "the export's input_size"
        if any(own.is_static and own != given for own, given in zip(taken, images.shape, strict=True)):
            msg = f"the model takes images of shape {taken}, not {images.shape}; without {option} it takes all sizes"
            raise InputError(msg)
        return images

    def predict(self, image: Frame, product: str | None = None) -> NumpyImageBatch:
        """Score an image, or an array of several, and name the product of each.

        Args:
            image: The path of an image file, a PIL image, or an array or tensor: grey, RGB or RGBA, of 8 or 16 bits, or
                floats from 0 to 1; :func:`~anomalib_ccl.export.frames.to_batch` has the shapes and the rules.
            product: The name of the product, where the line knows it: the image is scored by its limit, whatever the
                model would recognise.

        Returns:
            The predictions: ``pred_score``, ``pred_label``, ``anomaly_map``, ``pred_mask``, and the class names as
            ``explanation``; ``image`` is what the model was given.

        Raises:
            InputError: If it is no image, or has another shape, type, range or size than the model takes; if a file
                cannot be read; or if the model does not know the product.
        """
        if product is not None and product not in self.class_names:
            msg = f"the model does not know the product {product!r}; it knows {', '.join(self.class_names)}"
            raise InputError(msg)
        images = self.pre_process(image)
        number = -1 if product is None else self.class_names.index(product)
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self.model.create_infer_request()
        given = {self.input_blob.any_name: images, PRODUCT: np.array([number])}
        predictions = self._of_thread.request.infer(given, share_inputs=True)
        return NumpyImageBatch(image=images, **self.post_process(predictions))  # type: ignore[arg-type]

    def post_process(self, predictions: "OVDict") -> dict[str, NDArray | list[str]]:  # type: ignore[override]
        """Give the fields of anomalib's ``NumpyImageBatch``, the names of the classes as ``explanation``."""
        fields = dict(zip(self._fields, predictions.to_tuple(), strict=True))
        names = [*self.class_names, "unknown"]
        fields["explanation"] = [names[number] for number in fields.pop(CLASS_INDEX)]
        fields.pop(RAW_SCORE, None)
        return fields


def _add_product(model: "openvino.Model") -> None:
    """Have an input take the place of the recognised class where it is not below 0, and make the class an output."""
    from openvino import opset13 as operations  # noqa: PLC0415  # as anomalib does

    (recognised,) = (o for node in model.get_ops() for o in node.outputs() if CLASS_INDEX in o.get_names())
    takers = recognised.get_target_inputs()
    number = recognised.get_element_type()
    product = operations.parameter([-1], number, name=PRODUCT)
    product.output(0).set_names({PRODUCT})
    unknown = operations.less(product, operations.constant(0, number))
    chosen = operations.select(unknown, recognised, product).output(0)
    for taker in takers:
        taker.replace_source_output(chosen)
    recognised.set_names(set())
    chosen.set_names({CLASS_INDEX})
    model.add_parameters([product])


def _fix_size(model: "openvino.Model", image_size: tuple[int, int]) -> None:
    """Have a model take nothing but single images of one size."""
    height, width = map(index, image_size)
    if min(height, width) < 1:
        raise TypeError(image_size)
    # OpenVINO would reshape the network, which has no part that resizes where it was exported for one size.
    own = model.input(0).partial_shape[2:]
    if any(length.is_static and length != size for length, size in zip(own, image_size, strict=True)):
        msg = f"it was exported for images of {own[0]} × {own[1]} pixels; export it without input_size"
        raise InputError(msg)
    model.reshape({model.input(0): [1, 3, height, width], model.input(PRODUCT): [1]})
