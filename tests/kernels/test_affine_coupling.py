"""Affine coupling against scalar arithmetic, and against its own inverse."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from fastglow.kernels import affine_coupling, affine_coupling_inverse


def test_one_number_at_a_time(leaf):
    x, b_log_s = leaf(2, 3, 5), leaf(2, 6, 5)
    y, log_s = affine_coupling(x, b_log_s)
    assert y.shape == log_s.shape == x.shape
    for item in range(2):
        for channel in range(3):
            for t in range(5):
                b, expected_log_s = b_log_s[item, channel, t].item(), b_log_s[item, 3 + channel, t].item()
                assert log_s[item, channel, t].item() == expected_log_s
                expected = math.exp(expected_log_s) * x[item, channel, t].item() + b
                assert y[item, channel, t].item() == pytest.approx(expected, rel=1e-14)


def test_the_inverse_undoes_it(leaf):
    x, b_log_s = leaf(2, 3, 5), leaf(2, 6, 5)
    y, _ = affine_coupling(x, b_log_s)
    torch.testing.assert_close(affine_coupling_inverse(y, b_log_s), x, atol=1e-13, rtol=0)


def test_log_s_is_the_log_of_the_derivative(leaf):
    x, b_log_s = leaf(1, 1, 4), leaf(1, 2, 4)
    y, log_s = affine_coupling(x, b_log_s)
    (derivative,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(derivative.log(), log_s.detach(), atol=1e-14, rtol=0)


def test_gradients(leaf):
    assert gradcheck(affine_coupling, (leaf(2, 3, 5), leaf(2, 6, 5)))
    assert gradcheck(affine_coupling_inverse, (leaf(2, 3, 5), leaf(2, 6, 5)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_is_kept(dtype):
    x, b_log_s = torch.randn(1, 1, 3, dtype=dtype), torch.randn(1, 2, 3, dtype=dtype)
    y, log_s = affine_coupling(x, b_log_s)
    assert y.dtype == log_s.dtype == affine_coupling_inverse(y, b_log_s).dtype == dtype
