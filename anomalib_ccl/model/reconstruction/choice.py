"""Which reconstruction network a name stands for, and what it is made with."""

import inspect
import pydoc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anomalib_ccl.errors import InputError
from anomalib_ccl.model.reconstruction.base import ReconstructionNetwork
from anomalib_ccl.model.reconstruction.dinomaly import Dinomaly
from anomalib_ccl.model.reconstruction.reverse_distillation import ReverseDistillation
from anomalib_ccl.model.reconstruction.vit import ViT
from anomalib_ccl.model.tiling import Tiling
from anomalib_ccl.names import nearest

NETWORKS: dict[str, type[ReconstructionNetwork]] = {
    "reverse_distillation": ReverseDistillation,
    "vit": ViT,
    "dinomaly": Dinomaly,
}
# Of a smaller image there may be one position, which no instance norm and no smoothing takes.
_SMALLEST = 32


def network_class(name: str) -> type[ReconstructionNetwork]:
    """Find a network by its name, or by its class path."""
    if name in NETWORKS:
        return NETWORKS[name]
    if "." not in name:
        near = nearest(name, NETWORKS)
        hint = f"did you mean {near!r}? It takes" if near else "it takes"
        known = f"{', '.join(NETWORKS)}, and the class path of a network of your own"
        msg = f"unknown reconstruction {name!r}; {hint} {known}"
        raise InputError(msg)
    try:
        found: Any = pydoc.locate(name)
    except pydoc.ErrorDuringImport as error:
        msg = f"reconstruction {name!r} cannot be imported: {error.value}"
        raise InputError(msg) from error
    if not (inspect.isclass(found) and issubclass(found, ReconstructionNetwork)):
        msg = f"Python finds no class {name!r} derived from {ReconstructionNetwork.__name__} of {__package__}"
        raise InputError(msg)
    return found


def is_loaded(name: str) -> bool:
    """Tell whether a network can be had without an import: one of ours, or a class that somebody has imported."""
    return name in NETWORKS or any(f"{cls.__module__}.{cls.__qualname__}" == name for cls in _subclasses())


def _subclasses(of: type[ReconstructionNetwork] = ReconstructionNetwork) -> list[type[ReconstructionNetwork]]:
    return [found for cls in of.__subclasses__() for found in (cls, *_subclasses(cls))]


def default_backbone(name: str) -> str | None:
    """Tell which backbone a network has where none is given."""
    backbone = inspect.signature(network_class(name)).parameters.get("backbone")
    return None if backbone is None else backbone.default


def check_image_size(size: tuple[int, int] | None, stride: int, tiling: Tiling) -> None:
    """Refuse a size that a network does not take."""
    if size is None:
        return
    height, width = tiling.tile_size(size)
    if any(length < _SMALLEST or length % stride for length in (height, width)):
        msg = f"image_size must be multiples of {stride} pixels and at least {_SMALLEST}, got {height} × {width}"
        raise InputError(msg)


def default_image_size(network: ReconstructionNetwork) -> tuple[int, int]:
    """Give the size of a network's recipe, as multiples of its stride."""
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
    """Make a network."""
    cls = network_class(name)
    signature = inspect.signature(cls)
    arguments = dict(options or {})
    if "backbone" in signature.parameters:
        backbone = backbone or default_backbone(name)
        arguments = {"backbone": backbone, "pre_trained": pre_trained, "weights": weights, **arguments}
    elif backbone is not None:
        msg = f"reconstruction {name!r} has no backbone; leave backbone={backbone!r} away"
        raise InputError(msg)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        own = [option for option in signature.parameters if option not in {"backbone", "pre_trained", "weights"}]
        msg = f"reconstruction {name!r}: {error}; its reconstruction_args are: {', '.join(own) or 'none'}"
        raise InputError(msg) from error
    return cls(**arguments)
