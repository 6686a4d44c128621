"""The precision that losses and normalisations are computed in."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def upcast(x: Tensor) -> Tensor:
    """Raise half precision to single; leave single and double as they are.

    Example:
        >>> [upcast(torch.zeros(1, dtype=t)).dtype for t in (torch.bfloat16, torch.float64)]
        [torch.float32, torch.float64]
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Compute in the precision of the tensors, whatever the autocast state.

    Example:
        >>> x = torch.ones(2, 2)
        >>> with torch.autocast("cpu", torch.bfloat16), without_autocast(x.device):
        ...     (x @ x).dtype
        torch.float32
    """
    return nullcontext() if torch.compiler.is_compiling() else torch.autocast(device.type, enabled=False)
