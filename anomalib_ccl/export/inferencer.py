"""Exported models that tell the product in an image."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from anomalib.data import NumpyImageBatch
from anomalib.deploy import OpenVINOInferencer
from numpy.typing import NDArray

from anomalib_ccl.data.ranges import PixelRanges
from anomalib_ccl.export.frames import Frame, to_batch
from anomalib_ccl.export.model_file import read_model

# What an exported file has: a tensor of this name inside its graph, and metadata under these keys.
CLASS_INDEX = "class_index"
CLASS_NAMES = "class_names"
PIXEL_RANGES = "pixel_ranges"


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
        names, ranges = _metadata(model, CLASS_NAMES), _metadata(model, PIXEL_RANGES)
        if names is None:
            msg = (
                f"{path} cannot tell products: it is not the export of a CCL model trained with calibrate=True. "
                "Export such a model, or use anomalib's OpenVINOInferencer."
            )
            raise ValueError(msg)
        self.class_names = names
        self._ranges = ranges and PixelRanges(**{kind: values and tuple(values) for kind, values in ranges.items()})
        if self.image_size is not None:
            _fix_size(model, path, self.image_size)
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

    def predict(self, image: Frame) -> NumpyImageBatch:
        """Score an image, or an array of several, and tell the product of each.

        Args:
            image: The path of an image file, a PIL image, or an array or tensor: grey, RGB or RGBA, of 8 or 16 bits, or
                floats from 0 to 1; :func:`~anomalib_ccl.export.frames.to_batch` has the shapes and the rules.

        Returns:
            The predictions: ``pred_score``, ``pred_label``, ``anomaly_map``, ``pred_mask``, and the class names as
            ``explanation``; ``image`` is what the model was given.

        Raises:
            TypeError: If it is no image.
            ValueError: If it has another shape, type or range than images have, or another size than the model takes.
            OSError: If a file cannot be read.
        """
        images = self.pre_process(image)
        predictions = self.model({self.input_blob.any_name: images})
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
        return fields


def _metadata(model: Any, key: str) -> Any:  # noqa: ANN401
    """What an exported model says of itself; None if it does not."""
    # Where OpenVINO has the metadata of an ONNX file, and keeps it in every precision.
    place = ["framework", key]
    return json.loads(model.get_rt_info(place).value) if model.has_rt_info(place) else None


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
    model.reshape([1, 3, *image_size])
