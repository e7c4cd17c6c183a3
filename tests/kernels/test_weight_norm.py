"""Weight normalisation against NumPy and PyTorch's parametrisation."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.nn.utils.parametrizations import weight_norm as parametrize

from fastglow.kernels import weight_norm

SHAPES = [(5, 3, 7), (1, 3, 1), (4, 1, 1)]


@pytest.fixture(params=SHAPES, ids=str)
def inputs(request, leaf):
    return leaf(*request.param), leaf(request.param[0], 1, 1)


def test_against_numpy(inputs):
    v, g = (x.detach().numpy() for x in inputs)
    weight = weight_norm(*inputs).detach()
    assert weight.shape == v.shape
    np.testing.assert_allclose(weight, g * v / np.sqrt((v**2).sum(axis=(1, 2), keepdims=True)), atol=1e-14)


def test_against_pytorchs_parametrisation(inputs):
    v, g = inputs
    conv = nn.Conv1d(v.shape[1], v.shape[0], v.shape[2], bias=False, dtype=torch.float64)
    parametrize(conv)
    with torch.no_grad():
        conv.parametrizations.weight.original0.copy_(g)
        conv.parametrizations.weight.original1.copy_(v)
    weight = weight_norm(v, g)
    torch.testing.assert_close(weight, conv.weight, atol=1e-14, rtol=0)
    upstream = torch.randn_like(weight)
    expected = torch.autograd.grad(conv.weight, tuple(conv.parameters()), upstream)
    torch.testing.assert_close(torch.autograd.grad(weight, (g, v), upstream), expected, atol=1e-13, rtol=0)


def test_gradients(inputs):
    assert gradcheck(weight_norm, inputs)


def test_the_length_of_v_does_not_matter(inputs):
    v, g = inputs
    torch.testing.assert_close(weight_norm(1000 * v, g), weight_norm(v, g), atol=1e-14, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_is_kept(dtype):
    v, g = torch.randn(3, 5, 7), torch.rand(3, 1, 1) + 0.5
    weight = weight_norm(v.to(dtype), g.to(dtype))
    assert weight.dtype == dtype
    torch.testing.assert_close(weight.float(), weight_norm(v, g), atol=4 * torch.finfo(dtype).eps, rtol=0)
