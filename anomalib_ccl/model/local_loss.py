"""The local class-aware contrastive loss (Fan et al., https://arxiv.org/abs/2412.04769)."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_ccl.errors import InputError
from anomalib_ccl.model.global_loss import check_temperature
from anomalib_ccl.model.matching import match_positions
from anomalib_ccl.model.precision import upcast
from anomalib_ccl.names import check_choice

MatchOn = Literal["teacher", "projected"]
Positives = Literal["both", "view", "class"]

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
        positives: ``"both"``, as in the paper; ``"view"``, the second view's alone, as in the code that its authors
            released; ``"class"``, the other image's alone, where images that have none are left out.
        every: From a random one on, every how manieth position is a query, at least 1: the mean over some of them
            stands for the mean over all, at that share of the cost.
        match_on: Whose similarity finds the matches: that of the ``"teacher"``'s features, as in the released code, or
            of the ``"projected"`` features, as in the paper's supplement.

    Raises:
        InputError: If an argument is out of its range.

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
        positives: Positives = "both",
        every: int = 1,
        match_on: MatchOn = "teacher",
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        for name, number in (("num_negatives", num_negatives), ("every", every)):
            if number < 1:
                msg = f"{name} must be at least 1, got {number}"
                raise InputError(msg)
        check_choice("match_on", match_on, get_args(MatchOn))
        check_choice("positives", positives, get_args(Positives))
        self.temperature = temperature
        self.num_negatives = num_negatives
        self.positives = positives
        self.every = every
        self.match_on = match_on

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
        in_class, has_in_class = draw_in_class_positives(labels)
        itself = torch.arange(len(labels), device=labels.device)
        # Whether a positive is a position of the query or of the key, of which image, and which images have one.
        both = [(False, itself, torch.ones_like(has_in_class)), (True, in_class, has_in_class)]
        of_query, images, has_positive = zip(
            *{"both": both, "view": both[:1], "class": both[1:]}[self.positives], strict=True
        )
        weights = (torch.stack(has_positive) & has_negative).to(upcast(projected_query[0]).dtype)
        weights = weights / weights.sum(dim=0).clamp_min(1) / weights.any(dim=0).sum().clamp_min(1)

        on_teacher = self.match_on == "teacher"
        seen_query, seen_key = (teacher_query, teacher_key) if on_teacher else (projected_query, projected_key)
        scales = []
        with torch.autocast(labels.device.type, enabled=False):
            for f, g, p, k in zip(seen_query, seen_key, projected_query, projected_key, strict=True):
                positions = f[0, 0].numel()
                first = int(torch.randint(min(self.every, positions), ())) if self.every > 1 else 0
                asking = f.flatten(2)[..., first :: self.every, None]
                matches = []
                for mine, image, has_any in zip(of_query, images, has_positive, strict=True):
                    having = has_any.nonzero().flatten()
                    matches.append(torch.zeros(asking.shape[0], asking.shape[2], dtype=torch.long, device=f.device))
                    matches[-1][having] = match_positions(asking[having], f if mine else g, image[having])
                query, key = (upcast(x).flatten(2).transpose(1, 2) for x in (p, k))
                drawn = of_query, torch.stack(images), torch.stack(matches), negatives, weights
                scales.append(_WeightedPositionLoss.apply(query, key, *drawn, first, self.every, self.temperature))
        return torch.stack(scales).mean()


def draw_negatives(labels: Tensor, num_negatives: int) -> tuple[Tensor, Tensor]:
    """Draw images of other classes for each image of a batch, uniformly and with replacement.

    Example:
        >>> draw_negatives(torch.tensor([0, 1]), 3)
        (tensor([[1, 1, 1],
                [0, 0, 0]]), tensor([True, True]))
    """
    return _draw(labels[:, None] != labels, num_negatives)


def draw_in_class_positives(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Draw another image of its class for each image of a batch, uniformly.

    Example:
        >>> in_class, has_in_class = draw_in_class_positives(torch.tensor([0, 1, 0]))
        >>> in_class[has_in_class], has_in_class
        (tensor([2, 0]), tensor([ True, False,  True]))
    """
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    in_class, has_in_class = _draw((labels[:, None] == labels) & ~itself, 1)
    return in_class[:, 0], has_in_class


def _draw(candidates: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Draw columns that are set in each row, and say which rows have any."""
    has_any = candidates.any(dim=1)
    weights = torch.where(has_any[:, None], candidates, True).float()
    return torch.multinomial(weights, count, replacement=True), has_any


def position_losses(query: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Contrast each position with each of its positives and all its negatives: -log softmax of the positive.

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

    A positive is a position of the key, or of the query of another image. The gradient is made
    chunk by chunk along with the value, so that beside the two gradients no map of the inputs' size is ever kept.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  # torch documents no type for it
        query: Tensor,  # (B, U, C), as key
        key: Tensor,
        of_query: tuple[bool, ...],  # of each of P positives
        images: Tensor,  # (P, B)
        matches: Tensor,  # (P, B, U / every)
        negatives: Tensor,  # (B, K)
        weights: Tensor,  # (P, B)
        first: int,
        every: int,
        temperature: float,
    ) -> Tensor:
        batch, _, channels = query.shape
        positions = matches.shape[2]
        needs_gradient = any(ctx.needs_input_grad)
        query_gradient, key_gradient = (torch.zeros_like(x) if needs_gradient else None for x in (query, key))
        total = query.new_zeros(())
        width = max(1, _CHUNK_FEATURES // (batch * channels))
        for start in range(0, positions, width):
            matched = matches[..., start : start + width]
            chunk = slice(first + start * every, first + (start + width) * every, every)
            found = [(image[:, None], match) for image, match in zip(images, matched, strict=True)]
            positives = torch.stack([(query if mine else key)[at] for mine, at in zip(of_query, found, strict=True)])
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
                for mine, at, to_match in zip(of_query, found, to_positives, strict=True):
                    (query_gradient if mine else key_gradient).index_put_(at, to_match, accumulate=True)
        ctx.save_for_backward(query_gradient, key_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        query_gradient, key_gradient = ctx.saved_tensors
        # In place, for two maps less at the peak; walking the graph a second time makes autograd raise an error.
        return query_gradient.mul_(gradient), key_gradient.mul_(gradient), *[None] * 8
