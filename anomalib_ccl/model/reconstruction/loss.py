"""How far the decoder's maps are from the teacher's (Deng & Li, CVPR 2022, https://arxiv.org/abs/2201.10703)."""

import torch
from torch import Tensor, nn

from anomalib_ccl.model.precision import at_least_single


class ReconstructionLoss(nn.Module):
    r"""Reverse distillation's loss: cosine distance of the whole maps, summed over the scales.

    .. math:: L = \sum_l mean_i [1 - \cos(vec f_{l,i}, vec d_{l,i})]

    It is what anomalib's ``ReverseDistillationLoss`` computes, which keeps normalised copies of all maps for the
    gradient; this one keeps nothing but the maps. It is computed in single precision at least.

    Example:
        >>> maps = [torch.randn(2, 8, 6, 6), torch.randn(2, 16, 3, 3)]
        >>> ReconstructionLoss()(maps, [-m for m in maps]).round()
        tensor(4.)
    """

    def forward(self, features: list[Tensor], reconstructed: list[Tensor]) -> Tensor:
        """Compute the loss of one batch.

        Args:
            features: The teacher's maps, per scale of shape ``(B, C_l, H_l, W_l)``.
            reconstructed: The decoder's maps, in the same shapes.

        Returns:
            The loss, a scalar in [0, 2 × scales], of at least single precision.
        """
        scales = []
        with torch.autocast(features[0].device.type, enabled=False):
            for f, d in zip(map(_flat, features), map(_flat, reconstructed), strict=True):
                lengths = (torch.linalg.vector_norm(x, dim=1).clamp_min(1e-8) for x in (f, d))
                cosine = (f * d).sum(dim=1) / torch.stack(list(lengths)).prod(dim=0)
                scales.append((1 - cosine).mean())
        return torch.stack(scales).sum()


def _flat(x: Tensor) -> Tensor:
    # In this order the maps of the network need no copy; the cosine is the same in any.
    return at_least_single(x).movedim(1, -1).flatten(1)
