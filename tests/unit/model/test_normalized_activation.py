"""Instance norm and leaky ReLU in one operation, against PyTorch's two."""

import pytest
import torch
from torch.nn import functional as F

from anomalib_ccl.model.normalized_activation import NormalizedActivation


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (1, 2, 1, 2)])
def test_value_and_gradient_are_those_of_the_two_layers(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    gradient = torch.randn(shape, dtype=torch.float64)
    actual, expected = NormalizedActivation()(x.clone()), F.leaky_relu(F.instance_norm(x))
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, x, gradient), torch.autograd.grad(expected, x, gradient))


def test_half_precision_is_computed_in_single_precision() -> None:
    torch.manual_seed(0)
    x = (100 + torch.randn(2, 3, 32, 32)).bfloat16().requires_grad_()
    actual = NormalizedActivation()(x.clone())
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), F.leaky_relu(F.instance_norm(x.float())), rtol=0.01, atol=0.01)
    (gradient,) = torch.autograd.grad(actual.float().square().sum(), x)
    assert gradient.isfinite().all()


def test_result_takes_the_place_of_the_input_in_training_only() -> None:
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    hidden = x * 2
    assert NormalizedActivation()(hidden).data_ptr() == hidden.data_ptr()
    hidden = x * 2
    assert NormalizedActivation().eval()(hidden).data_ptr() != hidden.data_ptr()
