"""The batch of all processes, for losses that compare images."""

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F


def gathered(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Join the embeddings and classes that the processes have of a batch; all of them must call this together.

    A loss of the joined batch is the same on all processes, and its gradients in distributed training, which takes
    their mean over the processes, are those of one process with the whole batch. For that, the gradient that goes
    back to this process's own embeddings is multiplied by the number of processes.

    Args:
        embeddings: The embeddings of this process, of shape ``(B, D)``; B may differ between processes.
        labels: Their classes, of shape ``(B,)``.

    Returns:
        Embeddings and classes of all processes, in the order of their ranks, of shapes ``(ΣB, D)`` and ``(ΣB,)``;
        the arguments themselves outside of distributed training.

    Example:
        >>> embeddings, labels = torch.ones(2, 8), torch.tensor([0, 1])
        >>> gathered(embeddings, labels)[0] is embeddings
        True
    """
    if not dist.is_available() or not dist.is_initialized():
        return embeddings, labels
    sizes = [int(size) for size in _of_each_process(torch.tensor(len(labels), device=labels.device))]
    parts = _parts(embeddings, sizes)
    parts[dist.get_rank()] = own = embeddings.view_as(embeddings)
    if own.requires_grad:
        own.register_hook(lambda gradient: gradient * len(sizes))
    return torch.cat(parts), torch.cat(_parts(labels, sizes))


def _parts(x: Tensor, sizes: list[int]) -> list[Tensor]:
    """The rows that each process has, without gradient."""
    # All processes must send tensors of one size.
    padded = F.pad(x.detach(), (0, 0) * (x.dim() - 1) + (0, max(sizes) - len(x)))
    return [part[:size] for part, size in zip(_of_each_process(padded), sizes, strict=True)]


def _of_each_process(x: Tensor) -> list[Tensor]:
    received = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(received, x)
    return received
