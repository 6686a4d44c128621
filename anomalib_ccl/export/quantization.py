"""Which parts of an exported model are quantised to 8 bits."""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib.data import AnomalibDataModule, ImageBatch
from anomalib.deploy import CompressionType
from torchvision.transforms.v2.functional import resize

from anomalib_ccl.data.multi_category import share_ranges
from anomalib_ccl.data.reading import PixelRanges
from anomalib_ccl.errors import InputError
from anomalib_ccl.export.model_file import CLASS_INDEX

if TYPE_CHECKING:
    import openvino

# With the first 0, 1, 2 and 3 convolutions in single precision, the mean image AUROC of tf_efficientnet_lite0 on realad
# was 75.6, 76.3, 77.0 and 76.9; with all of them it is 76.6. Of two models trained without one of the categories, with
# 79.8 and 77.2, it was 79.3 and 77.2 with none in single precision, 79.5 and 77.7 with two.
_KEPT_CONVOLUTIONS = 2

# Names of constants that are not of the network, after their places in the model.
_SCORING = ("model.calibration.", "model.memory.")


def validation_images(datamodule: AnomalibDataModule | None, ranges: PixelRanges | None) -> Any:  # noqa: ANN401  # a loader
    """Give the images that tell the ranges of values, black and white of which are those of the training."""
    if datamodule is not None:
        datamodule.setup("fit")
    if datamodule is None or not len(getattr(datamodule, "val_data", ())):
        msg = "INT8_PTQ needs validation images; give a datamodule with --data, and another val_split_mode than none"
        raise InputError(msg)
    share_ranges(datamodule, ranges)
    return datamodule.val_dataloader()


def check_compression(kind: CompressionType) -> None:
    """Refuse what cannot be done here."""
    if kind == CompressionType.INT8_ACQ:
        msg = "INT8_ACQ would quantise the arithmetic of the scores and the limits too; choose INT8_PTQ, which does not"
        raise InputError(msg)
    if kind in {CompressionType.INT8, CompressionType.INT8_PTQ} and find_spec("nncf") is None:
        msg = f"{kind.name} needs nncf, which is not installed: pip install 'anomalib-ccl[int8]', or choose FP16"
        raise InputError(msg)


def quantize(source: Path, target: Path, loader: Iterable[ImageBatch]) -> None:
    """Quantise the network of an exported model, not its first layers, nor the scores, which would be clipped."""
    import nncf  # noqa: PLC0415  # an extra
    import openvino  # noqa: PLC0415  # as anomalib does

    # Not public: `nncf.quantize` is this, but also quantises both branches of an If, such as the memory's for unknown
    # products, and fails where no image of the data takes one of them.
    from nncf.openvino.quantization.quantize_model import native_quantize_impl  # noqa: PLC0415

    model = openvino.Core().read_model(source)
    size = model.input(0).partial_shape[2:]
    fixed = [length.get_length() for length in size] if size.is_static else None
    images = nncf.Dataset(loader, lambda batch: resize(batch.image, fixed) if fixed else batch.image)
    network, has_products = network_of(model)
    names = [node.friendly_name for node in model.get_ordered_ops()]
    kept = nncf.IgnoredScope(names=[name for name in names if name not in network], validate=False)
    kind = nncf.ModelType.TRANSFORMER if has_products else None
    quantized = native_quantize_impl(model, images, ignored_scope=kept, model_type=kind)
    target.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(quantized, target, compress_to_fp16=False)


def network_of(model: "openvino.Model") -> tuple[set[str], bool]:
    """Find the network in an exported model, and whether it has matrix products."""
    # All that its convolutions and products need, but for the products that resize the images, what depends on
    # calibration, memory or class (distances, limits), what only the class depends on, and the first convolutions.
    nodes = model.get_ordered_ops()
    classes = [node for node in nodes if any(CLASS_INDEX in output.names for output in node.outputs())]
    results = [node for node in nodes if node.get_type_name() == "Result"]
    scoring = [node for node in nodes if node.friendly_name.startswith(_SCORING)]
    dependent = _names([*classes, *scoring])  # in the order of computation, each node comes after what it needs
    for node in nodes:
        if not dependent.isdisjoint(_names(_sources(node))):
            dependent.add(node.friendly_name)
    candidates = _needed(results, until=_names(classes)) - dependent
    # Convolutions that smooth the map have one channel.
    convolutions = [
        node
        for node in nodes
        if "Convolution" in node.get_type_name()
        and node.output(0).partial_shape[1] != 1
        and node.friendly_name in candidates
    ]
    products = [node for node in nodes if node.get_type_name() == "MatMul" and node.friendly_name in candidates]
    resizing = _needed(convolutions[:1], until=set()) & _names(products)
    own = [node for node in products if node.friendly_name not in resizing]
    network = _needed([*convolutions, *own], until=resizing)
    return network - _names(convolutions[:_KEPT_CONVOLUTIONS]), bool(own)


def _names(nodes: "Iterable[openvino.Node]") -> set[str]:
    """The names of nodes."""
    return {node.friendly_name for node in nodes}


def _needed(nodes: "Iterable[openvino.Node]", until: set[str]) -> set[str]:
    """The names of nodes and of all that they need, directly or not, up to some that are left out."""
    found: set[str] = set()
    needed = list(nodes)
    while needed:
        node = needed.pop()
        if node.friendly_name not in found and node.friendly_name not in until:
            found.add(node.friendly_name)
            needed.extend(_sources(node))
    return found


def _sources(node: "openvino.Node") -> "list[openvino.Node]":
    """The nodes that one takes values from."""
    return [value.get_source_output().get_node() for value in node.inputs()]
