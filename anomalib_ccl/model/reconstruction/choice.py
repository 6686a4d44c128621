"""Which reconstruction network a name stands for, and what it is made with."""

import difflib
import inspect
import pydoc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anomalib_ccl.model.reconstruction.base import ReconstructionNetwork
from anomalib_ccl.model.reconstruction.dinomaly import Dinomaly
from anomalib_ccl.model.reconstruction.reverse_distillation import ReverseDistillation
from anomalib_ccl.model.reconstruction.vit import ViT
from anomalib_ccl.model.tiling import Tiling

NETWORKS: dict[str, type[ReconstructionNetwork]] = {
    "reverse_distillation": ReverseDistillation,
    "vit": ViT,
    "dinomaly": Dinomaly,
}


def network_class(name: str) -> type[ReconstructionNetwork]:
    """Find a network by its name, or by its class path.

    Args:
        name: One of :data:`NETWORKS`, or the path of a class, such as ``"my_module.MyNetwork"``.

    Returns:
        The class.

    Raises:
        ValueError: If there is none of this name, or it is no network.

    Example:
        >>> network_class("reverse_distilation")
        Traceback (most recent call last):
        ...
        ValueError: unknown reconstruction 'reverse_distilation'; did you mean 'reverse_distillation'? It ...
    """
    if name in NETWORKS:
        return NETWORKS[name]
    if "." not in name:
        near = difflib.get_close_matches(name.lower(), NETWORKS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? It takes" if near else "it takes"
        known = f"{', '.join(NETWORKS)}, and the class path of a network of your own"
        msg = f"unknown reconstruction {name!r}; {hint} {known}"
        raise ValueError(msg)
    try:
        found: Any = pydoc.locate(name)
    except pydoc.ErrorDuringImport as error:
        msg = f"reconstruction {name!r} cannot be imported: {error.value}"
        raise ValueError(msg) from error
    if found is None:
        msg = f"there is no class {name!r} for reconstruction; is its module where Python looks for modules?"
        raise ValueError(msg)
    if not (inspect.isclass(found) and issubclass(found, ReconstructionNetwork)):
        msg = f"reconstruction {name!r} is no class derived from {ReconstructionNetwork.__name__} of {__package__}"
        raise ValueError(msg)
    if inspect.isabstract(found):
        msg = f"reconstruction {name!r} lacks the methods {', '.join(sorted(found.__abstractmethods__))}"
        raise ValueError(msg)
    return found


def default_backbone(name: str) -> str | None:
    """Tell which backbone a network has where none is given.

    Args:
        name: Its name or class path.

    Returns:
        Name of a timm model, or None if the network has no backbone.

    Raises:
        ValueError: If there is none of this name, or it is no network.

    Example:
        >>> default_backbone("reverse_distillation")
        'wide_resnet50_2'
    """
    backbone = inspect.signature(network_class(name)).parameters.get("backbone")
    return None if backbone is None else backbone.default


def check_image_size(size: tuple[int, int] | None, stride: int, tiling: Tiling) -> None:
    """Refuse a size that a network does not take.

    Args:
        size: Height and width of the images, in pixels, if they are known.
        stride: The network's stride.
        tiling: The tiles that the images are cut into.

    Raises:
        ValueError: If such images cannot be cut so, or the sides of a tile are not multiples of the stride.
    """
    if size is None:
        return
    height, width = tiling.tile_size(size)
    if any(length < stride or length % stride for length in (height, width)):
        msg = f"image_size must be multiples of {stride} pixels, got {height} × {width}"
        raise ValueError(msg)


def default_image_size(network: ReconstructionNetwork) -> tuple[int, int]:
    """Give the size of a network's recipe, as multiples of its stride.

    Args:
        network: A network.

    Returns:
        Height and width, in pixels.
    """
    stride = network.stride
    height, width = (max(1, round(length / stride)) * stride for length in network.recipe.image_size)
    return height, width


def make_network(
    name: str,
    backbone: str | None = None,
    pre_trained: bool = True,
    weights: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> ReconstructionNetwork:
    """Make a network.

    Args:
        name: Its name or class path.
        backbone: Name of a timm model; the network's own default if not given.
        pre_trained: Whether a timm model in it uses timm's pre-trained weights.
        weights: A file with that model's weights, used instead of timm's.
        options: Further arguments of the network, by name.

    Returns:
        The network.

    Raises:
        ValueError: If there is no such network, or it does not take the arguments.

    Example:
        >>> make_network("reverse_distillation", "resnet18", pre_trained=False).channels
        [64, 128, 256]
    """
    cls = network_class(name)
    signature = inspect.signature(cls)
    arguments = dict(options or {})
    if "backbone" in signature.parameters:
        backbone = backbone or default_backbone(name)
        arguments = {"backbone": backbone, "pre_trained": pre_trained, "weights": weights, **arguments}
    elif backbone is not None:
        msg = f"reconstruction {name!r} has no backbone; leave backbone={backbone!r} away"
        raise ValueError(msg)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        own = [option for option in signature.parameters if option not in {"backbone", "pre_trained", "weights"}]
        msg = f"reconstruction {name!r}: {error}; its reconstruction_args are: {', '.join(own) or 'none'}"
        raise ValueError(msg) from error
    network = cls(**arguments)
    if missing := [attribute for attribute in ("channels", "stride") if not hasattr(network, attribute)]:
        msg = f"reconstruction {name!r} lacks the attribute {missing[0]!r}"
        raise ValueError(msg)
    return network
