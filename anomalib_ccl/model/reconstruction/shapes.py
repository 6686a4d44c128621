"""Whether what a reconstruction network gives has the shapes that its interface says: a stranger's may not."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from anomalib_ccl.model.reconstruction.base import ReconstructionNetwork


def check_encoded(network: ReconstructionNetwork, encoded: Any) -> None:  # noqa: ANN401  # whatever a stranger gives
    """Refuse what cannot be projected.

    Args:
        network: The network that made it.
        encoded: What it encoded images to.

    Raises:
        ValueError: If that is not targets and inputs, or the inputs do not begin with as many maps, of as many
            channels, as the network says.

    Example:
        >>> from anomalib_ccl.model.reconstruction.choice import make_network
        >>> network = make_network("reverse_distillation", "resnet18", pre_trained=False)
        >>> check_encoded(network, ([], []))
        Traceback (most recent call last):
        ...
        ValueError: ReverseDistillation has maps of 64, 128, 256 channels to project, but encode gave inputs of ...
    """
    name, channels = type(network).__name__, list(network.channels)
    lists = encoded if isinstance(encoded, tuple | list) else [encoded]
    if len(lists) != 2 or not all(isinstance(maps, tuple | list) for maps in lists):
        kinds = _listed(type(part).__name__ for part in lists)
        msg = f"encode of {name} must give two lists of maps, targets and inputs, but gave: {kinds}"
        raise ValueError(msg)
    inputs = lists[1]
    if [m.shape[1] for m in inputs[: len(channels)] if m.ndim == 4] != channels:
        msg = (
            f"{name} has maps of {_listed(channels)} channels to project, but encode gave inputs of shape "
            f"{_listed(tuple(m.shape) for m in inputs)}"
        )
        raise ValueError(msg)


def check_reconstructed(network: ReconstructionNetwork, targets: list[Tensor], reconstructed: list[Tensor]) -> None:
    """Refuse reconstructed maps that are not in the shapes of the targets.

    Args:
        network: The network that made them.
        targets: The targets that it gave of images.
        reconstructed: What it reconstructed.

    Raises:
        ValueError: If there are more, or fewer, or others.
    """
    expected, actual = ([tuple(m.shape) for m in maps] for maps in (targets, reconstructed))
    if actual != expected:
        msg = f"{type(network).__name__} has targets of shape {_listed(expected)}, but decode gave {_listed(actual)}"
        raise ValueError(msg)


def check_scored(network: ReconstructionNetwork, images: Tensor, embedding: Tensor, anomaly_map: Tensor) -> None:
    """Refuse an embedding or a map that is not in the shape of the images.

    Args:
        network: The network that made them.
        images: The images, of shape ``(B, 3, H, W)``.
        embedding: What the network's ``pool`` gave.
        anomaly_map: What its ``anomaly_map`` gave.

    Raises:
        ValueError: If they are not of shape ``(B, D)`` and ``(B, 1, H, W)``.
    """
    name, batch = type(network).__name__, len(images)
    if embedding.ndim != 2 or len(embedding) != batch:
        msg = f"pool of {name} gave {tuple(embedding.shape)}, not one vector for each of {batch} images"
        raise ValueError(msg)
    if anomaly_map.shape != (expected := (batch, 1, *images.shape[2:])):
        msg = f"anomaly_map of {name} gave {tuple(anomaly_map.shape)}, not {tuple(expected)}"
        raise ValueError(msg)


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values)) or "none"
