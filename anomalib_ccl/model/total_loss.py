"""The loss that CCL trains with (Fan et al., https://arxiv.org/abs/2412.04769)."""

from collections.abc import Callable

from torch import Tensor, nn

from anomalib_ccl.model.global_loss import GlobalContrastiveLoss, GlobalForm
from anomalib_ccl.model.local_loss import LocalContrastiveLoss
from anomalib_ccl.model.reconstruction.loss import ReconstructionLoss
from anomalib_ccl.model.torch_model import TrainingOutput

Gather = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class TotalLoss(nn.Module):
    r"""Reconstruct the features, refine them locally and cluster the classes globally.

    .. math:: L = L_{rec} + \lambda_{local} L_{local} + \lambda_{global} L_{global}

    Args:
        local_weight: Weight of :class:`LocalContrastiveLoss`, at least 0; 0 switches it off.
        global_weight: Weight of :class:`GlobalContrastiveLoss`, at least 0; 0 switches it off.
        temperature: Temperature of both contrastive losses, greater than 0.
        num_negatives: Negative images per image in the local loss, at least 1.
        global_form: See :class:`GlobalContrastiveLoss`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        local_weight: float = 1.0,
        global_weight: float = 1.0,
        temperature: float = 0.05,
        num_negatives: int = 1,
        global_form: GlobalForm = "supcon",
    ) -> None:
        super().__init__()
        _check_not_negative(local_weight=local_weight, global_weight=global_weight)
        self.local_weight = local_weight
        self.global_weight = global_weight
        self.reconstruction = ReconstructionLoss()
        self.local = LocalContrastiveLoss(temperature, num_negatives)
        self.globally = GlobalContrastiveLoss(temperature, global_form)

    @property
    def contrastive(self) -> bool:
        """Whether any contrastive loss is switched on."""
        return self.local_weight > 0 or self.global_weight > 0

    def forward(self, output: TrainingOutput, labels: Tensor, gather: Gather) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of one batch.

        Args:
            output: What the network gave in training mode.
            labels: Class index of each image, of shape ``(B,)``.
            gather: Joins the embeddings, and the labels, that the processes have of the batch; see
                :func:`~anomalib_ccl.training.gather.gathered`.

        Returns:
            The total, a scalar, and its terms by name, not weighted, without those that are switched off.
        """
        terms = {"reconstruction": self.reconstruction(output.features, output.reconstructed)}
        total = terms["reconstruction"]
        if self.local_weight:
            terms["local"] = self.local(
                output.features, output.view_features, output.projected, output.view_projected, labels
            )
            total = total + self.local_weight * terms["local"]
        if self.global_weight:
            terms["global"] = self.globally(*gather(output.embedding, labels))
            total = total + self.global_weight * terms["global"]
        return total, terms


def _check_not_negative(**weights: float) -> None:
    for name, weight in weights.items():
        if weight < 0:
            msg = f"{name} must not be negative, got {weight}; 0 switches the loss off"
            raise ValueError(msg)
