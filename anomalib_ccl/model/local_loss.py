"""The local class-aware contrastive loss (Fan et al., https://arxiv.org/abs/2412.04769)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_ccl.model.precision import at_least_single
from anomalib_ccl.model.temperature import check_temperature

# How many similarities, and how many feature values, exist at one time: small enough for the memory that they save
# (16 MiB and 2 MiB), large enough for full speed.
_CHUNK_SIMILARITIES = 2**22
_CHUNK_FEATURES = 2**19


class LocalContrastiveLoss(nn.Module):
    r"""Refine dense features: pull each position to its match in a second view, push it from other classes.

    At each scale l, for image i and position u, the match :math:`v^*` is the position of the second view whose
    *teacher* features are nearest in cosine. With the projections p of the query and k of the second view,

    .. math:: s^+ = \cos(p_{l,i}(u), k_{l,i}(v^*)) / \tau, \quad s^- = \cos(p_{l,i}(u), k_{l,j}(u)) / \tau, \quad
              L = mean_{l,i,u} -\log \frac{e^{s^+}}{e^{s^+} + \sum_j e^{s^-}}

    where j are ``num_negatives`` images drawn from the *other* classes of the batch, anew for each image and call.
    Each scale has the same weight. Images whose batch holds no other class are left out; if all are, the loss is
    zero. Gradients flow through both projections, not through the match.

    Memory: neither the position × position similarities of a batch nor normalised copies of the maps ever exist, but
    for a teacher's map of one scale while it is matched; positions are worked through in chunks, and the gradient is
    made along with the value.

    Args:
        temperature: The temperature :math:`\tau`, greater than 0.
        num_negatives: Negative images per image and step, at least 1.

    Raises:
        ValueError: If the temperature or the number of negatives is not positive.

    Example:
        >>> teacher, projected = torch.randn(4, 8, 6, 6), torch.randn(4, 8, 6, 6, requires_grad=True)
        >>> loss = LocalContrastiveLoss()([teacher], [teacher], [projected], [projected], torch.tensor([0, 0, 1, 1]))
        >>> loss.shape, bool(loss > 0)
        (torch.Size([]), True)
    """

    def __init__(self, temperature: float = 0.05, num_negatives: int = 1) -> None:
        super().__init__()
        check_temperature(temperature)
        if num_negatives < 1:
            msg = f"num_negatives must be at least 1, got {num_negatives}"
            raise ValueError(msg)
        self.temperature = temperature
        self.num_negatives = num_negatives

    def forward(
        self,
        teacher_query: list[Tensor],
        teacher_key: list[Tensor],
        projected_query: list[Tensor],
        projected_key: list[Tensor],
        labels: Tensor,
    ) -> Tensor:
        """Compute the loss of one batch.

        Args:
            teacher_query: Teacher features of the images, per scale of shape ``(B, C_l, H_l, W_l)``.
            teacher_key: Teacher features of the second view, in the same shapes.
            projected_query: Projected features of the images, in the same shapes.
            projected_key: Projected features of the second view, in the same shapes.
            labels: Class index of each image, of shape ``(B,)``.

        Returns:
            The loss, a scalar of at least single precision.
        """
        negatives, has_negative = draw_negatives(labels, self.num_negatives)
        scales = []
        with torch.autocast(labels.device.type, enabled=False):
            for f, g, p, k in zip(teacher_query, teacher_key, projected_query, projected_key, strict=True):
                query, key = (at_least_single(x).flatten(2) for x in (p, k))
                weights = has_negative.to(query.dtype) / has_negative.sum().clamp_min(1)
                match = match_positions(f, g)
                scales.append(_WeightedPositionLoss.apply(query, key, match, negatives, weights, self.temperature))
        return torch.stack(scales).mean()


def draw_negatives(labels: Tensor, num_negatives: int) -> tuple[Tensor, Tensor]:
    """Draw images of other classes for each image of a batch, uniformly and with replacement.

    Args:
        labels: Class index of each image, of shape ``(B,)``.
        num_negatives: How many to draw for each image.

    Returns:
        The drawn indices into the batch, of shape ``(B, num_negatives)``, and which images have any image of
        another class, of shape ``(B,)``. Where an image has none its indices mean nothing.

    Example:
        >>> draw_negatives(torch.tensor([0, 1]), 3)
        (tensor([[1, 1, 1],
                [0, 0, 0]]), tensor([True, True]))
    """
    other_class = labels[:, None] != labels
    has_negative = other_class.any(dim=1)
    weights = torch.where(has_negative[:, None], other_class, True).float()
    return torch.multinomial(weights, num_negatives, replacement=True), has_negative


@torch.no_grad()
def match_positions(query: Tensor, key: Tensor) -> Tensor:
    """Find, for each position of one map, the position of the other whose feature is nearest in cosine.

    Args:
        query: Feature maps of shape ``(B, C, H, W)``.
        key: Feature maps of shape ``(B, C, H', W')``.

    Returns:
        Flat positions in ``key``, in ``[0, H' W')``, of shape ``(B, H W)``.

    Example:
        >>> maps = torch.eye(4).reshape(1, 4, 2, 2)
        >>> match_positions(maps, maps.flip(-1))
        tensor([[1, 0, 3, 2]])
    """
    query, key = (at_least_single(x).flatten(2) for x in (query, key))
    # The query's own length does not change which key is nearest.
    key = F.normalize(key, dim=1)
    (batch, _, positions), candidates = query.shape, key.shape[2]
    matches = torch.empty(batch, positions, dtype=torch.long, device=query.device)
    rows = min(positions, max(1, _CHUNK_SIMILARITIES // (batch * candidates)))
    # One buffer for all chunks: allocating each anew leaves a heap that grows to the size of the whole matrix.
    buffer = query.new_empty(batch, rows, candidates)
    for start in range(0, positions, rows):
        chunk = slice(start, start + rows)
        similarity = buffer[:, : min(rows, positions - start)]
        torch.bmm(query[..., chunk].transpose(1, 2), key, out=similarity)
        matches[:, chunk] = similarity.argmax(dim=2)
    return matches


def position_losses(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Contrast each position with its positive and its negatives: -log softmax of the positive.

    Args:
        query: Features of shape ``(B, C, U)``.
        positive: The matched feature of each position, of shape ``(B, C, U)``.
        negatives: K features of other classes for each position, of shape ``(B, K, C, U)``.
        temperature: The temperature.

    Returns:
        The loss of each position, of shape ``(B, U)``.

    Example:
        >>> x = torch.ones(1, 2, 1)
        >>> position_losses(x, x, x[:, None], temperature=0.05)  # positive and negative alike: log 2
        tensor([[0.6931]])
    """
    positive_score = F.cosine_similarity(query, positive, dim=1)[:, None] / temperature
    negative_score = F.cosine_similarity(query[:, None], negatives, dim=2) / temperature
    return torch.cat([positive_score, negative_score], dim=1).logsumexp(dim=1) - positive_score[:, 0]


class _WeightedPositionLoss(torch.autograd.Function):
    """The sum of weight × mean over positions of :func:`position_losses`, worked through in chunks of positions.

    The gradient is made chunk by chunk along with the value, so that beside the two gradients no map of the
    inputs' size is ever kept.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  # torch documents no type for it
        query: Tensor,
        key: Tensor,
        match: Tensor,
        negatives: Tensor,
        weights: Tensor,
        temperature: float,
    ) -> Tensor:
        batch, channels, positions = query.shape
        needs_gradient = any(ctx.needs_input_grad)
        query_gradient, key_gradient = (torch.zeros_like(x) if needs_gradient else None for x in (query, key))
        total = query.new_zeros(())
        width = max(1, _CHUNK_FEATURES // (batch * channels))
        for start in range(0, positions, width):
            chunk = slice(start, start + width)
            index = match[:, None, chunk].expand(-1, channels, -1)
            leaves = [query[..., chunk].detach(), key.gather(2, index), key[..., chunk][negatives]]
            with torch.set_grad_enabled(needs_gradient):
                at_query, at_match, at_negatives = (leaf.requires_grad_(needs_gradient) for leaf in leaves)
                losses = position_losses(at_query, at_match, at_negatives, temperature)
                loss = (weights[:, None] * losses).sum() / positions
            total += loss.detach()
            if query_gradient is not None and key_gradient is not None:
                to_query, to_match, to_negatives = torch.autograd.grad(loss, leaves)
                query_gradient[..., chunk] = to_query
                key_gradient.scatter_add_(2, index, to_match)
                key_gradient[..., chunk].index_add_(0, negatives.flatten(), to_negatives.flatten(0, 1))
        ctx.save_for_backward(query_gradient, key_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        query_gradient, key_gradient = ctx.saved_tensors
        # In place, for two maps less at the peak; walking the graph a second time makes autograd raise an error.
        return query_gradient.mul_(gradient), key_gradient.mul_(gradient), None, None, None, None
