"""Instance norm and leaky ReLU as one operation that needs the memory of one map."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from anomalib_ccl.model.precision import upcast

_EPS, _SLOPE = 1e-5, 0.01


class NormalizedActivation(nn.Module):
    """What ``nn.InstanceNorm2d`` and then ``nn.LeakyReLU`` compute.

    In training the result takes the place of the input and is all that is kept for the gradient, because the normalised
    input can be found from it; the two layers keep three maps. The layer before must not need its own output.

    Example:
        >>> x = torch.randn(2, 4, 8, 8)
        >>> torch.equal(NormalizedActivation()(x), nn.LeakyReLU()(nn.InstanceNorm2d(4)(x)))
        True
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of each image over its positions, and divide what is negative by 100."""
        # A compiler fuses the two better than it can what is written by hand.
        if self.training and x.requires_grad and not torch.compiler.is_compiling():
            return _InPlace.apply(x)
        return F.leaky_relu(F.instance_norm(x, eps=_EPS), _SLOPE)


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401  # torch documents no type for it
        scales = []
        for part in _parts(x):
            values = upcast(part)
            values.sub_(_mean(values))
            scales.append((_mean(values.square()) + _EPS).rsqrt_())
            part.copy_(F.leaky_relu_(values.mul_(scales[-1]), _SLOPE))
        ctx.mark_dirty(x)
        ctx.save_for_backward(x, torch.cat(scales))
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        output, scales = ctx.saved_tensors
        result = torch.empty_like(output)
        for y, g, scale, to_input in zip(*(_parts(t) for t in (output, gradient, scales, result)), strict=True):
            y, g = upcast(y), upcast(g)  # noqa: PLW2901
            # The normalised input is y, or y / slope, and its gradient g, or g · slope: their product is y · g.
            along = _mean(y * g)
            normalized = F.leaky_relu(y, 1 / _SLOPE)
            g = torch.ops.aten.leaky_relu_backward(g, y, _SLOPE, True)  # noqa: PLW2901
            to_input.copy_(g.sub_(_mean(g)).sub_(normalized.mul_(along)).mul_(scale))
        return result


def _parts(x: Tensor) -> tuple[Tensor, ...]:
    # Image by image, the steps find the maps in a processor's cache; a GPU does best with all at once.
    return x.split(1 if x.is_cpu else len(x))


def _mean(x: Tensor) -> Tensor:
    return x.mean(dim=(2, 3), keepdim=True)
