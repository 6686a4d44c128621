"""The local and the global class-aware contrastive loss (Fan et al., https://arxiv.org/abs/2412.04769).

Both are computed in single precision at least, whatever the autocast state: at a temperature of 0.05 their
exponentials reach e^20, more than half precision holds.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .precision import at_least_single

GlobalForm = Literal["supcon", "released"]

# How many similarities, and how many feature values, exist at one time: small enough for the memory that they save
# (16 MiB and 2 MiB), large enough for full speed.
_CHUNK_SIMILARITIES = 2**22
_CHUNK_FEATURES = 2**19


class GlobalContrastiveLoss(nn.Module):
    r"""Make each class a compact cluster: supervised contrastive loss on the images' embeddings.

    With :math:`z` the L2-normalised embeddings and :math:`A(i)` the other images of image i's class
    (Khosla et al., 2020, https://arxiv.org/abs/2004.11362, equation 2):

    .. math:: L = mean_i \frac{-1}{|A(i)|} \sum_{a \in A(i)} \log
              \frac{e^{z_i z_a / \tau}}{\sum_{b \ne i} e^{z_i z_b / \tau}}

    Images without another one of their class are left out of the mean. A batch that holds a single class, or no
    two images of any, gives zero.

    Args:
        temperature: The temperature :math:`\tau`, greater than 0.
        form: ``"supcon"`` is the formula above. ``"released"`` is what the code released by the paper's authors
            computes: with log-probabilities over the whole row, the image itself included, the mean over the same
            class *plus* the mean over the other classes. Its second term rewards similarity to other classes:
            minimised alone on random embeddings of 4 classes it drove the mean cosine between different classes
            to 0.94. It is here for comparison only.

    Raises:
        ValueError: If the temperature is not positive or the form is unknown.

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
        _check_temperature(temperature)
        if form not in get_args(GlobalForm):
            msg = f"unknown global loss {form!r}; choose one of {', '.join(get_args(GlobalForm))}"
            raise ValueError(msg)
        self.temperature = temperature
        self.form = form

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of one batch.

        Args:
            embeddings: One vector per image, not necessarily normalised, of shape ``(B, D)``.
            labels: Class index of each image, of shape ``(B,)``.

        Returns:
            The loss, a scalar of at least single precision.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            z = F.normalize(at_least_single(embeddings), dim=1)
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
        _check_temperature(temperature)
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


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the last dimension where the mask is set; zero, with a graph, where it is nowhere set."""
    return values.masked_fill(~mask, 0).sum(dim=-1) / mask.sum(dim=-1).clamp_min(1)


def _check_temperature(temperature: float) -> None:
    if temperature <= 0:
        msg = f"temperature must be greater than 0, got {temperature}; the paper uses 0.05"
        raise ValueError(msg)
