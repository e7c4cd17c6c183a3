"""The gated activation unit against scalar arithmetic."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from fastglow.kernels import gated_activation

# Shape of the optional second summand for a first one of [2, 6, 5].
SECOND = {"absent": None, "full": (2, 6, 5), "broadcast over time": (2, 6, 1)}


@pytest.fixture(params=SECOND)
def inputs(request, leaf):
    shape = SECOND[request.param]
    return (leaf(2, 6, 5),) if shape is None else (leaf(2, 6, 5), leaf(*shape))


def test_one_number_at_a_time(inputs):
    output = gated_activation(*inputs)
    assert output.shape == (2, 3, 5)
    a = inputs[0].tolist()
    b = inputs[1].expand(2, 6, 5).tolist() if len(inputs) == 2 else [[[0.0] * 5] * 6] * 2
    for item in range(2):
        for channel in range(3):
            for t in range(5):
                filtered = a[item][channel][t] + b[item][channel][t]
                gate = a[item][3 + channel][t] + b[item][3 + channel][t]
                expected = math.tanh(filtered) / (1 + math.exp(-gate))
                assert output[item, channel, t].item() == pytest.approx(expected, rel=1e-13)


def test_gradients(inputs):
    assert gradcheck(gated_activation, inputs)


def test_saturates_without_nan():
    a = torch.tensor([[[1e30], [-1e30]]], requires_grad=True)
    output = gated_activation(a)
    output.sum().backward()
    assert output.item() == 0
    assert torch.equal(a.grad, torch.zeros_like(a))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_is_kept(dtype):
    assert gated_activation(torch.randn(1, 2, 3, dtype=dtype)).dtype == dtype
