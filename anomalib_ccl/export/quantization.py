"""Which parts of an exported model are quantised to 8 bits."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib.data import AnomalibDataModule

from anomalib_ccl.export.inferencer import CLASS_INDEX

if TYPE_CHECKING:
    import openvino

# With the first 0, 1, 2 and 3 convolutions in single precision, the mean image AUROC of tf_efficientnet_lite0 on realad
# was 75.6, 76.3, 77.0 and 76.9; with all of them it is 76.6. Of two models trained without one of the categories, with
# 79.8 and 77.2, it was 79.3 and 77.2 with none in single precision, 79.5 and 77.7 with two.
_KEPT_CONVOLUTIONS = 2


def quantize(path: Path, datamodule: AnomalibDataModule) -> None:
    """Quantise the network of an exported model, but neither its first layers nor what follows its features.

    The limits of the classes, the similarities to prototypes and the scores would be cut off at their mean maximum.

    Args:
        path: The model, an OpenVINO ``.xml`` file in single precision, which is replaced.
        datamodule: Its validation images give the ranges of values.
    """
    import nncf  # noqa: PLC0415  # an extra
    import openvino  # noqa: PLC0415  # as anomalib does

    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # for the file to be replaced
    model = core.read_model(path)
    datamodule.setup("fit")
    images = nncf.Dataset(datamodule.val_dataloader(), lambda batch: batch.image)
    network, products = _network(model)
    names = [node.friendly_name for node in model.get_ordered_ops()]
    kept = nncf.IgnoredScope(names=[name for name in names if name not in network], validate=False)
    kind = nncf.ModelType.TRANSFORMER if products else None
    openvino.save_model(nncf.quantize(model, images, ignored_scope=kept, model_type=kind), path, compress_to_fp16=False)


def _network(model: "openvino.Model") -> tuple[set[str], set[str]]:
    """Give the names of all nodes that convolutions and products of the network need, and those of the products.

    Without the first convolutions, and without the products that resize the images and compare prototypes.
    """
    nodes = model.get_ordered_ops()
    # Those that smooth the map have one channel.
    convolutions = [n for n in nodes if "Convolution" in n.get_type_name() and n.output(0).partial_shape[1] != 1]
    products = {n.friendly_name: n for n in nodes if n.get_type_name() == "MatMul"}
    resizing = _needed(convolutions[:1], until=set()) & products.keys()
    comparing = _nearest_product([n for n in nodes if CLASS_INDEX in n.output(0).names])
    own = products.keys() - resizing - comparing
    network = _needed([*convolutions, *(products[name] for name in own)], until=resizing)
    return network - {node.friendly_name for node in convolutions[:_KEPT_CONVOLUTIONS]}, own


def _needed(nodes: list[Any], until: set[str]) -> set[str]:
    """The names of nodes and of all that they need, directly or not, up to some that are left out."""
    found: set[str] = set()
    needed = list(nodes)
    while needed:
        node = needed.pop()
        if node.friendly_name not in found and node.friendly_name not in until:
            found.add(node.friendly_name)
            needed.extend(_sources(node))
    return found


def _nearest_product(nodes: list[Any]) -> set[str]:
    """The name of the product from which the nodes are computed most directly, if there is any."""
    while nodes:
        if found := {node.friendly_name for node in nodes if node.get_type_name() == "MatMul"}:
            return found
        nodes = [source for node in nodes for source in _sources(node)]
    return set()


def _sources(node: Any) -> list[Any]:  # noqa: ANN401  # of OpenVINO, an extra for type checkers
    return [value.get_source_output().get_node() for value in node.inputs()]
