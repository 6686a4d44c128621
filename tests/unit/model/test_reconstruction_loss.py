"""The reconstruction loss against anomalib's."""

import torch
from anomalib.models.image.reverse_distillation.loss import ReverseDistillationLoss

from anomalib_ccl.model.reconstruction.loss import ReconstructionLoss


def test_value_and_gradient_are_those_of_anomalibs_reverse_distillation_loss() -> None:
    torch.manual_seed(0)
    shapes = [(3, 4, 6, 5), (3, 8, 3, 2)]
    features = [torch.randn(shape) for shape in shapes]
    reconstructed = [torch.randn(shape).requires_grad_() for shape in shapes]
    actual = ReconstructionLoss()(features, reconstructed)
    expected = ReverseDistillationLoss()(features, reconstructed)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, reconstructed), torch.autograd.grad(expected, reconstructed))


def test_zero_maps_give_a_finite_gradient() -> None:
    reconstructed = [torch.zeros(2, 3, 4, 4, requires_grad=True)]
    ReconstructionLoss()([torch.zeros(2, 3, 4, 4)], reconstructed).backward()
    assert reconstructed[0].grad.isfinite().all()


def test_half_precision_is_computed_in_single_precision() -> None:
    torch.manual_seed(0)
    features, reconstructed = ([torch.randn(2, 64, 32, 32).bfloat16()] for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ReconstructionLoss()(features, reconstructed)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, ReconstructionLoss()([features[0].float()], [reconstructed[0].float()]))
