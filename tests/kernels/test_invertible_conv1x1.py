"""The invertible 1x1 convolution against NumPy, with determinants of both signs."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from fastglow.kernels import invertible_conv1x1, invertible_conv1x1_inverse


@pytest.fixture(params=[1, 2, 3, 8])
def size(request):
    return request.param


@pytest.fixture(params=[1, -1], ids=["det>0", "det<0"])
def weight(request, leaf, size):
    """[size, size, 1] float64, far from singular, its determinant of the sign that the parameter says."""
    weight = leaf(size, size, 1)
    with torch.no_grad():
        weight += 3 * torch.eye(size, dtype=torch.float64).unsqueeze(2)
        if torch.det(weight.squeeze(2)).sign() != request.param:
            weight[0] *= -1
    assert np.linalg.slogdet(weight.detach().squeeze(2).numpy()).sign == request.param
    return weight


def test_against_numpy(leaf, weight, size):
    z = leaf(2, size, 5)
    output, log_det = invertible_conv1x1(z, weight)
    matrix = weight.detach().squeeze(2).numpy()
    np.testing.assert_allclose(output.detach(), matrix @ z.detach().numpy(), atol=1e-13)
    assert log_det.shape == ()
    np.testing.assert_allclose(log_det.detach(), np.linalg.slogdet(matrix).logabsdet, atol=1e-13)
    np.testing.assert_allclose(
        invertible_conv1x1_inverse(z, weight).detach(), np.linalg.solve(matrix, z.detach().numpy()), atol=1e-12
    )


def test_the_inverse_undoes_it(leaf, weight, size):
    z = leaf(2, size, 5)
    there_and_back = invertible_conv1x1_inverse(invertible_conv1x1(z, weight)[0], weight)
    torch.testing.assert_close(there_and_back, z, atol=1e-12, rtol=0)


def test_gradients(leaf, weight, size):
    z = leaf(2, size, 3)
    assert gradcheck(invertible_conv1x1, (z, weight))
    assert gradcheck(invertible_conv1x1_inverse, (z, weight))


def test_gradient_of_the_log_determinant_is_the_transposed_inverse(weight):
    (gradient,) = torch.autograd.grad(invertible_conv1x1(weight.transpose(0, 2), weight)[1], weight)
    np.testing.assert_allclose(gradient.squeeze(2), np.linalg.inv(weight.detach().squeeze(2).numpy()).T, atol=1e-12)


def test_a_permutation_has_log_determinant_zero():
    weight = torch.eye(4)[[1, 0, 2, 3]].unsqueeze(2)
    assert torch.det(weight.squeeze(2)) == -1
    assert invertible_conv1x1(torch.randn(1, 4, 3), weight)[1] == 0


def test_a_singular_matrix_is_minus_infinity_and_not_nan():
    assert invertible_conv1x1(torch.randn(1, 2, 3), torch.ones(2, 2, 1))[1] == -torch.inf


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_has_a_float32_determinant_and_inverse(dtype):
    z, weight = torch.randn(2, 4, 3).to(dtype), torch.linalg.qr(torch.randn(4, 4))[0].unsqueeze(2).to(dtype)
    output, log_det = invertible_conv1x1(z, weight)
    assert output.dtype == dtype
    wide = torch.promote_types(dtype, torch.float32)
    assert log_det.dtype == wide
    assert log_det == torch.linalg.slogdet(weight.squeeze(2).to(wide)).logabsdet
    inverse = invertible_conv1x1_inverse(output, weight)
    assert inverse.dtype == dtype
    torch.testing.assert_close(inverse, z, atol=16 * torch.finfo(dtype).eps, rtol=0)
