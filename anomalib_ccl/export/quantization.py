"""Which parts of an exported model are quantised to 8 bits."""

from pathlib import Path
from typing import TYPE_CHECKING

from anomalib.data import AnomalibDataModule

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
    kept = nncf.IgnoredScope(names=_not_quantised(model), validate=False)
    openvino.save_model(nncf.quantize(model, images, ignored_scope=kept), path, compress_to_fp16=False)


def _not_quantised(model: "openvino.Model") -> list[str]:
    """The names of the first convolutions, and of all nodes that no convolution of the network needs."""
    nodes = model.get_ordered_ops()
    # Those that smooth the map have one channel.
    convolutions = [n for n in nodes if "Convolution" in n.get_type_name() and n.output(0).partial_shape[1] != 1]
    network: set[str] = set()
    needed = list(convolutions)
    while needed:
        node = needed.pop()
        # Products resize the images.
        if node.friendly_name not in network and node.get_type_name() != "MatMul":
            network.add(node.friendly_name)
            needed.extend(source.get_source_output().get_node() for source in node.inputs())
    network -= {node.friendly_name for node in convolutions[:_KEPT_CONVOLUTIONS]}
    return [node.friendly_name for node in nodes if node.friendly_name not in network]
