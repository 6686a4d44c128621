"""Exported models that tell the product in an image."""

from pathlib import Path
from typing import Any

import numpy as np
from anomalib.data import NumpyImageBatch
from anomalib.deploy import OpenVINOInferencer
from numpy.typing import NDArray

from anomalib_ccl.data.ranges import PixelRanges
from anomalib_ccl.export.frames import Frame, to_batch
from anomalib_ccl.export.limits_file import CLASS_INDEX, CLASS_NAMES, PIXEL_RANGES, PRODUCT, RAW_SCORE, metadata_of
from anomalib_ccl.export.model_file import read_model


class CCLInferencer(OpenVINOInferencer):
    """anomalib's OpenVINO inferencer, which also tells the product in each image, and takes any frame of a camera.

    It reads what ``anomalib export`` makes of a CCL model, in any precision; nothing else need be copied along. The
    file has the outputs of every anomalib model, and works with anomalib's own inferencer too. Unlike that one, this
    leaves no cache in the working directory; ``config={"CACHE_DIR": ...}`` makes one.

    Args:
        path: The exported model: an ``.xml`` file with its ``.bin`` beside it, or an ``.onnx`` file with its
            ``.onnx.data``.
        device: Where OpenVINO computes: "AUTO", "CPU", "GPU" or "NPU".
        config: Properties for OpenVINO, such as ``{"INFERENCE_PRECISION_HINT": "f32"}``.
        image_size: Height and width of all images to come, in pixels, if they come one by one and are all alike.
            OpenVINO then prepares for nothing else, which takes a fifth off the time of tf_efficientnet_lite0.

    Attributes:
        class_names: The names of the classes that the model knows.

    Raises:
        FileNotFoundError: If a file of the model is missing.
        ValueError: If the model cannot be read, cannot tell products, or was exported for another size than
            ``image_size``; or if OpenVINO cannot run it on the device.

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
        self.image_size = image_size
        super().__init__(path, device, config)

    def load_model(self, path: str | Path) -> tuple[Any, Any, Any]:  # type: ignore[override]
        """Load a model and make the class of each image an output.

        Args:
            path: The exported model.

        Returns:
            Its first input, its first output and the compiled model.

        Raises:
            FileNotFoundError: If a file of the model is missing.
            ValueError: As of the class.
        """
        import openvino  # noqa: PLC0415  # as anomalib does

        model = read_model(path)
        names, ranges = metadata_of(model, CLASS_NAMES), metadata_of(model, PIXEL_RANGES)
        if names is None:
            msg = (
                f"{path} cannot tell products: it is not the export of a CCL model trained with calibrate=True. "
                "Export such a model, or use anomalib's OpenVINOInferencer."
            )
            raise ValueError(msg)
        self.class_names = names
        self._ranges = ranges and PixelRanges(**{kind: values and tuple(values) for kind, values in ranges.items()})
        if PRODUCT not in {name for given in model.inputs for name in given.names}:
            _add_product(model)
        if self.image_size is not None:
            _fix_size(model, path, self.image_size)
        if CLASS_INDEX not in {name for output in model.outputs for name in output.names}:
            model.add_outputs(CLASS_INDEX)
        # In a model compiled for one size, they may have names of other tensors besides.
        self._fields = [output.any_name for output in model.outputs]
        core = openvino.Core()
        try:
            compiled = core.compile_model(model, self.device, self.config)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            msg = (
                f"OpenVINO cannot run {path} with device={self.device!r}, config={self.config}: {reason}; "
                f"devices here: {', '.join(core.available_devices)}"
            )
            raise ValueError(msg) from error
        return compiled.input(0), compiled.output(0), compiled

    def pre_process(self, image: Frame) -> NDArray[np.float32]:  # type: ignore[override]
        """Make the model's input of an image, or of an array of several; see ``predict``.

        Args:
            image: The image or images.

        Returns:
            Array of shape ``(B, 3, H, W)``, in [0, 1].
        """
        images = to_batch(image, self._ranges)
        taken, (count, _, height, width) = self.input_blob.partial_shape, images.shape
        if any(own.is_static and own != given for own, given in zip(taken, images.shape, strict=True)):
            made, option = ("loaded for single", "image_size") if self.image_size else ("exported for", "input_size")
            msg = (
                f"the model was {made} images of {taken[2]} × {taken[3]} pixels and cannot take {count} of "
                f"{height} × {width}; give it such, or do without {option}, which makes it take all sizes"
            )
            raise ValueError(msg)
        return images

    def predict(self, image: Frame, product: str | None = None) -> NumpyImageBatch:
        """Score an image, or an array of several, and tell the product of each.

        Args:
            image: The path of an image file, a PIL image, or an array or tensor: grey, RGB or RGBA, of 8 or 16 bits, or
                floats from 0 to 1; :func:`~anomalib_ccl.export.frames.to_batch` has the shapes and the rules.
            product: The name of the product, where the line knows it: the image is scored by its limit, whatever the
                model would recognise.

        Returns:
            The predictions: ``pred_score``, ``pred_label``, ``anomaly_map``, ``pred_mask``, and the class names as
            ``explanation``; ``image`` is what the model was given.

        Raises:
            TypeError: If it is no image.
            ValueError: If it has another shape, type or range than images have, or another size than the model takes,
                or if the model does not know the product.
            OSError: If a file cannot be read.
        """
        if product is not None and product not in self.class_names:
            msg = f"the model does not know the product {product!r}; it knows {', '.join(self.class_names)}"
            raise ValueError(msg)
        images = self.pre_process(image)
        index = -1 if product is None else self.class_names.index(product)
        predictions = self.model({self.input_blob.any_name: images, PRODUCT: np.array([index])})
        return NumpyImageBatch(image=images, **self.post_process(predictions))

    def post_process(self, predictions: Any) -> dict[str, Any]:  # type: ignore[override]  # noqa: ANN401
        """Name the classes in predictions.

        Args:
            predictions: What the compiled model gave.

        Returns:
            The fields of anomalib's ``NumpyImageBatch``; ``explanation`` is the class name of each image, ``"unknown"``
            where it is none of those trained on.
        """
        fields = dict(zip(self._fields, predictions.to_tuple(), strict=True))
        names = [*self.class_names, "unknown"]
        fields["explanation"] = [names[index] for index in fields.pop(CLASS_INDEX)]
        fields.pop(RAW_SCORE, None)
        return fields


def _add_product(model: Any) -> None:  # noqa: ANN401
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


def _fix_size(model: Any, path: str | Path, image_size: tuple[int, int]) -> None:  # noqa: ANN401
    """Have a model take nothing but single images of one size."""
    given = np.asarray(image_size)
    if given.shape != (2,) or given.dtype.kind != "i" or given.min() < 1:
        msg = f"image_size must be the height and width of the images in pixels, got {image_size!r}"
        raise ValueError(msg)
    # OpenVINO would reshape the network, which has no part that resizes where it was exported for one size.
    own = model.input(0).partial_shape[2:]
    if any(length.is_static and length != size for length, size in zip(own, image_size, strict=True)):
        msg = (
            f"{path} was exported for images of {own[0]} × {own[1]} pixels, not for image_size={image_size}; "
            "export it without input_size, which makes it take images of any size"
        )
        raise ValueError(msg)
    model.reshape({model.input(0): [1, 3, *image_size], model.input(PRODUCT): [1]})
