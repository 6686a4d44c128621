"""The precision that losses and normalisations are computed in."""

import torch
from torch import Tensor


def at_least_single(x: Tensor) -> Tensor:
    """Raise half precision to single; leave single and double as they are.

    Args:
        x: A floating-point tensor.

    Returns:
        The tensor itself, or a copy in single precision.

    Example:
        >>> [at_least_single(torch.zeros(1, dtype=t)).dtype for t in (torch.bfloat16, torch.float64)]
        [torch.float32, torch.float64]
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))
