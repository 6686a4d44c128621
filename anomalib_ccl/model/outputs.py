"""What the network gives: predictions, what it sees in images, and what its losses need."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Prediction(NamedTuple):
    """What the network predicts of a batch, with the fields of anomalib's ``InferenceBatch`` first.

    Attributes:
        pred_score: Score of each image in multiples of the limit of its class, of shape ``(B, 1)``, at least 0.
        pred_label: Whether it is anomalous, of shape ``(B, 1)``; the post-processor tells.
        anomaly_map: The map, in the same unit, of shape ``(B, 1, H, W)``, at least 0.
        pred_mask: Where it is anomalous, of the shape of the map; the post-processor tells.
        class_index: The class by whose limit it is scored, of shape ``(B,)``, integers; K, the number of classes, is an
            unknown product. 0 before calibration.
        raw_score: The score before it is divided by the limit, of shape ``(B, 1)``.
        embedding: What the class is recognised by, of shape ``(B, D)``.
    """

    pred_score: Tensor
    pred_label: Tensor | None
    anomaly_map: Tensor
    pred_mask: Tensor | None
    class_index: Tensor
    raw_score: Tensor
    embedding: Tensor


class Look(NamedTuple):
    """What the network sees in images or tiles, before it is known of which class they are.

    Attributes:
        embedding: Of shape ``(B, D)``.
        reconstruction: Map of the reconstruction, of shape ``(B, 1, H, W)``; None without a reconstruction.
        patches: Patches for the memory, of shape ``(B, C, h, w)``; None without a memory.
    """

    embedding: Tensor
    reconstruction: Tensor | None
    patches: Tensor | None


def embedding_of(looks: Sequence[Look]) -> Tensor:
    """Average what images are recognised by over their tiles.

    Args:
        looks: What is seen in each tile.

    Returns:
        Embedding of each image, of shape ``(B, D)``.
    """
    return torch.stack([look.embedding for look in looks]).mean(dim=0)


class TrainingOutput(NamedTuple):
    """What the losses of a training step need.

    Attributes:
        targets: The maps of the images that are to be reconstructed.
        reconstructed: The decoder's maps, in the same shapes.
        inputs: The maps of the images that are projected, per scale of shape ``(B, C_l, H_l, W_l)``.
        projected: Their projections, in the same shapes, with the step's noise.
        embedding: Embedding of each image, of shape ``(B, D)``.
        view_inputs: The maps of the second view that are projected, or an empty list where none was given.
        view_projected: Their projections, or an empty list.
        view_embedding: As ``embedding``, of the second view, where it was asked for.
    """

    targets: list[Tensor]
    reconstructed: list[Tensor]
    inputs: list[Tensor]
    projected: list[Tensor]
    embedding: Tensor
    view_inputs: list[Tensor]
    view_projected: list[Tensor]
    view_embedding: Tensor | None
