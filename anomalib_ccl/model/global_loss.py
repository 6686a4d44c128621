"""The global class-aware contrastive loss (Fan et al., https://arxiv.org/abs/2412.04769)."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_ccl.errors import InputError
from anomalib_ccl.model.precision import upcast
from anomalib_ccl.names import check_choice

GlobalForm = Literal["supcon", "released"]


class GlobalContrastiveLoss(nn.Module):
    r"""Make each class a compact cluster: supervised contrastive loss on the images' embeddings.

    With :math:`z` the L2-normalised embeddings and :math:`A(i)` the other embeddings of the class of embedding i
    (Khosla et al., 2020, https://arxiv.org/abs/2004.11362, equation 2):

    .. math:: L = mean_i \frac{-1}{|A(i)|} \sum_{a \in A(i)} \log
              \frac{e^{z_i z_a / \tau}}{\sum_{b \ne i} e^{z_i z_b / \tau}}

    In the paper the embeddings are those of the images and of their second views, 2B of B images, so that each has a
    positive. Embeddings without another one of their class are left out of the mean. A batch that holds a single class,
    or no two embeddings of any, gives zero.

    Args:
        temperature: The temperature :math:`\tau`, greater than 0.
        form: ``"supcon"`` is the formula above. ``"released"`` is what the code released by the paper's authors
            computes, on the images' embeddings alone: with log-probabilities over the whole row, the image itself
            included, the mean over the same class *plus* the mean over the other classes. Its second term rewards
            similarity to other classes: minimised alone on random embeddings of 4 classes it drove the mean cosine
            between different classes to 0.94. It is here for comparison only.

    Raises:
        InputError: If the temperature is not positive or the form is unknown.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> loss = GlobalContrastiveLoss(temperature=0.5)
        >>> tight = loss(embeddings, torch.tensor([0, 0, 1, 1]))
        >>> mixed = loss(embeddings, torch.tensor([0, 1, 0, 1]))
        >>> bool(tight < mixed)
        True
    """

    def __init__(self, temperature: float = 0.05, form: GlobalForm = "supcon") -> None:
        super().__init__()
        check_temperature(temperature)
        check_choice("global loss", form, get_args(GlobalForm))
        self.temperature = temperature
        self.form = form

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of one batch.

        Args:
            embeddings: One vector per image or view, not necessarily normalised, of shape ``(B, D)``.
            labels: The class index of each, of shape ``(B,)``.

        Returns:
            The loss, a scalar of at least single precision.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            z = F.normalize(upcast(embeddings), dim=1)
            logits = z @ z.T / self.temperature
        same = labels[:, None] == labels
        itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        has_other_class = (~same).any()

        if self.form == "released":
            log_p = logits.log_softmax(dim=1)
            attraction = -_masked_mean(log_p, same)
            repulsion = -_masked_mean(log_p, ~same)
            return _masked_mean(attraction + repulsion, has_other_class.expand(len(labels)))

        # The lowest finite number instead of -inf: a row that holds nothing else keeps a finite gradient.
        others = logits.masked_fill(itself, torch.finfo(logits.dtype).min)
        log_p = logits - others.logsumexp(dim=1, keepdim=True)
        positives = same & ~itself
        return _masked_mean(-_masked_mean(log_p, positives), positives.any(dim=1) & has_other_class)


def check_temperature(temperature: float) -> None:
    """Refuse a temperature by which similarities cannot be divided."""
    if not temperature > 0:
        msg = f"temperature must be greater than 0, got {temperature}; the paper uses 0.05"
        raise InputError(msg)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the last dimension where the mask is set; zero, with a graph, where it is nowhere set."""
    return values.masked_fill(~mask, 0).sum(dim=-1) / mask.sum(dim=-1).clamp_min(1)
