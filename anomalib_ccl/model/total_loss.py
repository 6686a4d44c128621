"""The loss that CCL trains with (Fan et al., https://arxiv.org/abs/2412.04769)."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from anomalib_ccl.errors import InputError
from anomalib_ccl.model.global_loss import GlobalContrastiveLoss
from anomalib_ccl.model.local_loss import LocalContrastiveLoss, Positives
from anomalib_ccl.model.outputs import TrainingOutput
from anomalib_ccl.names import check_choice

Losses = Literal["paper", "released", "single_view"]
Gather = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class TotalLoss(nn.Module):
    r"""Reconstruct the features, refine them locally and cluster the classes globally.

    .. math:: L = L_{rec} + \lambda_{local} L_{local} + \lambda_{global} L_{global}

    Args:
        local_weight: Weight of :class:`LocalContrastiveLoss`, at least 0; 0 switches it off.
        global_weight: Weight of :class:`GlobalContrastiveLoss`, at least 0; 0 switches it off.
        temperature: Temperature of both contrastive losses, greater than 0.
        losses: The forms of both contrastive losses. ``"paper"``: the global loss compares images and second views,
            and a position has a positive in its view and one in another image of its class. ``"released"``: what the
            code released by the paper's authors computes, the global loss in that code's formula and of the images
            alone, the local loss with the view's positive alone. ``"single_view"`` needs no second view, at a third
            of the cost of a step: the formulas of the paper with the images of the batch alone, the local loss at every
            fourth position. An image without another one of its class in the batch has no positive.

    Raises:
        InputError: If an argument is out of its range.
    """

    def __init__(
        self,
        local_weight: float = 1.0,
        global_weight: float = 1.0,
        temperature: float = 0.05,
        losses: Losses = "paper",
    ) -> None:
        super().__init__()
        check_choice("losses", losses, get_args(Losses))
        _check_not_negative(local_weight=local_weight, global_weight=global_weight)
        self.local_weight = local_weight
        self.global_weight = global_weight
        self.losses = losses
        forms: dict[str, tuple[Positives, int]] = {
            "paper": ("both", 1),
            "released": ("view", 1),
            "single_view": ("class", 4),
        }
        positives, every = forms[losses]
        self.local = LocalContrastiveLoss(temperature, positives=positives, every=every)
        self.globally = GlobalContrastiveLoss(temperature, "released" if losses == "released" else "supcon")

    @property
    def contrastive(self) -> bool:
        """Whether any contrastive loss is switched on."""
        return self.local_weight > 0 or self.global_weight > 0

    @property
    def compares_views(self) -> bool:
        """Whether the embeddings of second views are needed."""
        return self.global_weight > 0 and self.losses == "paper"

    @property
    def needs_view(self) -> bool:
        """Whether second views are needed at all."""
        return (self.local_weight > 0 and self.losses != "single_view") or self.compares_views

    def forward(
        self, reconstruction: Tensor, output: TrainingOutput, labels: Tensor, gather: Gather
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of one batch.

        Args:
            reconstruction: The reconstruction network's loss, a scalar.
            output: What the model gave in training mode.
            labels: Class index of each image, of shape ``(B,)``.
            gather: Joins the embeddings, and the labels, that the processes have of the batch.

        Returns:
            The total, a scalar, and its terms by name, not weighted, without those that are switched off.
        """
        total, terms = reconstruction, {"reconstruction": reconstruction}
        if self.local_weight:
            view = output.view_inputs, output.view_projected
            key, projected_key = (output.inputs, output.projected) if self.losses == "single_view" else view
            terms["local"] = self.local(output.inputs, key, output.projected, projected_key, labels)
            total = total + self.local_weight * terms["local"]
        if self.global_weight:
            embeddings, classes = [output.embedding], [labels]
            if self.compares_views and output.view_embedding is not None:
                embeddings.append(output.view_embedding)
                classes.append(labels)
            terms["global"] = self.globally(*gather(torch.cat(embeddings), torch.cat(classes)))
            total = total + self.global_weight * terms["global"]
        return total, terms


def _check_not_negative(**weights: float) -> None:
    for name, weight in weights.items():
        if not weight >= 0:
            msg = f"{name} must not be negative, got {weight}; 0 switches the loss off"
            raise InputError(msg)
