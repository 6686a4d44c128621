"""The local class-aware contrastive loss (Fan et al., https://arxiv.org/abs/2412.04769)."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_ccl.model.matching import match_positions
from anomalib_ccl.model.precision import at_least_single
from anomalib_ccl.model.temperature import check_temperature

MatchOn = Literal["teacher", "projected"]

# How many feature values of the queries are worked on at one time: few enough for the memory that it saves (2 MiB),
# enough for full speed.
_CHUNK_FEATURES = 2**19


class LocalContrastiveLoss(nn.Module):
    r"""Refine dense features: pull each position to its matches in its class, push it from other classes.

    At each scale l, a position u of image i has up to two positives: its match in the image's second view and its match
    in another image of the same class, drawn for each image and call from the batch, where it has one. The match
    is the most similar position in cosine, found without gradient. With the projections p of the images, k of the
    second views, :math:`x_{l,i,u}` the matches, that is :math:`k_{l,i}(v^*)` and :math:`p_{l,o}(w^*)` of the other
    image o,

    .. math:: s^+ = \cos(p_{l,i}(u), x) / \tau, \quad s^- = \cos(p_{l,i}(u), k_{l,j}(u)) / \tau, \quad
              L = mean_{l,i,u} mean_x -\log \frac{e^{s^+}}{e^{s^+} + \sum_j e^{s^-}}

    where j are ``num_negatives`` images drawn from the *other* classes of the batch, anew for each image and call.
    Each scale has the same weight, and each image, however many positives it has. Images whose batch holds no other
    class are left out; if all are, the loss is zero. Gradients flow through all projections.

    Memory: neither the position × position similarities of a batch nor normalised copies of the maps ever exist;
    positions are worked through in chunks, and the gradient is made along with the value.

    Args:
        temperature: The temperature :math:`\tau`, greater than 0.
        num_negatives: Negative images per image and step, at least 1.
        same_class_positive: Whether there is the second positive, as in the paper; the code that its authors
            released has the second view's alone.
        match_on: Whose similarity finds the matches: that of the ``"teacher"``'s features, as in the released code, or
            of the ``"projected"`` features, as in the paper's supplement.
        match_window: Matches are looked for among so many × so many positions around u, an odd number, as on the
            paper's project page, which does not tell the size; None, as in the released code, is the whole map.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> teacher, projected = torch.randn(4, 8, 6, 6), torch.randn(4, 8, 6, 6, requires_grad=True)
        >>> loss = LocalContrastiveLoss()([teacher], [teacher], [projected], [projected], torch.tensor([0, 0, 1, 1]))
        >>> loss.shape, bool(loss > 0)
        (torch.Size([]), True)
    """

    def __init__(
        self,
        temperature: float = 0.05,
        num_negatives: int = 1,
        same_class_positive: bool = True,
        match_on: MatchOn = "teacher",
        match_window: int | None = None,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        if num_negatives < 1:
            msg = f"num_negatives must be at least 1, got {num_negatives}"
            raise ValueError(msg)
        if match_on not in get_args(MatchOn):
            msg = f"unknown match_on {match_on!r}; choose one of {', '.join(get_args(MatchOn))}"
            raise ValueError(msg)
        if match_window is not None and (match_window < 1 or match_window % 2 == 0):
            msg = f"match_window must be an odd number from 1 on, got {match_window}; None is the whole map"
            raise ValueError(msg)
        self.temperature = temperature
        self.num_negatives = num_negatives
        self.same_class_positive = same_class_positive
        self.match_on = match_on
        self.match_window = match_window

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
        partners, has_partner = draw_partners(labels)
        # Which images have the view's positive, and which the partner's.
        has_positive = torch.stack([torch.ones_like(has_partner), has_partner & self.same_class_positive])
        with_partner = has_positive[1].nonzero().flatten()

        on_teacher = self.match_on == "teacher"
        seen_query, seen_key = (teacher_query, teacher_key) if on_teacher else (projected_query, projected_key)
        scales = []
        with torch.autocast(labels.device.type, enabled=False):
            for f, g, p, k in zip(seen_query, seen_key, projected_query, projected_key, strict=True):
                matches = [match_positions(f, g, window=self.match_window)]
                if len(with_partner):
                    matches.append(torch.zeros_like(matches[0]))
                    others = partners[with_partner]
                    matches[1][with_partner] = match_positions(f[with_partner], f, others, self.match_window)
                query, key = (at_least_single(x).flatten(2).transpose(1, 2) for x in (p, k))
                weights = (has_positive[: len(matches)] & has_negative).to(query.dtype)
                weights = weights / (has_positive.sum(dim=0) * has_negative.sum().clamp_min(1))
                drawn = torch.stack(matches), partners, negatives
                scales.append(_WeightedPositionLoss.apply(query, key, *drawn, weights, self.temperature))
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
    return _draw(labels[:, None] != labels, num_negatives)


def draw_partners(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Draw another image of its class for each image of a batch, uniformly.

    Args:
        labels: Class index of each image, of shape ``(B,)``.

    Returns:
        The drawn indices into the batch, and which images have any other image of their class, both of shape ``(B,)``.
        Where an image has none its index means nothing.

    Example:
        >>> partners, has_partner = draw_partners(torch.tensor([0, 1, 0]))
        >>> partners[has_partner], has_partner
        (tensor([2, 0]), tensor([ True, False,  True]))
    """
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    partners, has_partner = _draw((labels[:, None] == labels) & ~itself, 1)
    return partners[:, 0], has_partner


def _draw(candidates: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Draw columns that are set in each row, and say which rows have any."""
    has_any = candidates.any(dim=1)
    weights = torch.where(has_any[:, None], candidates, True).float()
    return torch.multinomial(weights, count, replacement=True), has_any


def position_losses(query: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Contrast each position with each of its positives and all its negatives: -log softmax of the positive.

    Args:
        query: Features of shape ``(B, U, C)``.
        positives: P matched features of each position, of shape ``(P, B, U, C)``.
        negatives: K features of other classes for each position, of shape ``(B, K, U, C)``.
        temperature: The temperature.

    Returns:
        The loss of each positive, of shape ``(P, B, U)``.

    Example:
        >>> x = torch.ones(1, 1, 2)
        >>> position_losses(x, x[None], x[:, None], temperature=0.05)  # positive and negative alike: log 2
        tensor([[[0.6931]]])
    """
    positive_scores = F.cosine_similarity(query, positives, dim=-1) / temperature
    negative_scores = F.cosine_similarity(query[:, None], negatives, dim=-1) / temperature
    return torch.logaddexp(positive_scores, negative_scores.logsumexp(dim=1)) - positive_scores


class _WeightedPositionLoss(torch.autograd.Function):
    """The sum of weight × mean over positions of :func:`position_losses`, worked through in chunks of positions.

    The first positive is a position of the key, the second, where there is one, of another query. The gradient is made
    chunk by chunk along with the value, so that beside the two gradients no map of the inputs' size is ever kept.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  # torch documents no type for it
        query: Tensor,  # (B, U, C), as key
        key: Tensor,
        matches: Tensor,  # (P, B, U)
        partners: Tensor,  # (B,)
        negatives: Tensor,  # (B, K)
        weights: Tensor,  # (P, B)
        temperature: float,
    ) -> Tensor:
        batch, positions, channels = query.shape
        needs_gradient = any(ctx.needs_input_grad)
        query_gradient, key_gradient = (torch.zeros_like(x) if needs_gradient else None for x in (query, key))
        images = (torch.arange(batch, device=query.device)[:, None], partners[:, None])
        total = query.new_zeros(())
        width = max(1, _CHUNK_FEATURES // (batch * channels))
        for start in range(0, positions, width):
            chunk = slice(start, start + width)
            found = [(image, match[:, chunk]) for image, match in zip(images, matches, strict=False)]
            positives = torch.stack([x[at] for x, at in zip((key, query), found, strict=False)])
            leaves = [query[:, chunk].detach(), positives, key[:, chunk][negatives]]
            with torch.set_grad_enabled(needs_gradient):
                at_query, at_positives, at_negatives = (leaf.requires_grad_(needs_gradient) for leaf in leaves)
                losses = position_losses(at_query, at_positives, at_negatives, temperature)
                loss = (weights[..., None] * losses).sum() / positions
            total += loss.detach()
            if query_gradient is not None and key_gradient is not None:
                to_query, to_positives, to_negatives = torch.autograd.grad(loss, leaves)
                query_gradient[:, chunk] += to_query
                key_gradient[:, chunk].index_add_(0, negatives.flatten(), to_negatives.flatten(0, 1))
                for gradient, at, to_match in zip((key_gradient, query_gradient), found, to_positives, strict=False):
                    gradient.index_put_(at, to_match, accumulate=True)
        ctx.save_for_backward(query_gradient, key_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        query_gradient, key_gradient = ctx.saved_tensors
        # In place, for two maps less at the peak; walking the graph a second time makes autograd raise an error.
        return query_gradient.mul_(gradient), key_gradient.mul_(gradient), None, None, None, None, None
