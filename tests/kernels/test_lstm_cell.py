"""The LSTM cell against the textbook's equations in NumPy."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from fastglow.kernels import lstm_cell

BATCH, N_IN, N = 3, 5, 7


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def inputs(request, leaf):
    state = leaf(BATCH, N_IN), leaf(BATCH, N), leaf(BATCH, N)
    weights = leaf(4 * N, N_IN), leaf(4 * N, N)
    return *state, *weights, *((leaf(4 * N), leaf(4 * N)) if request.param else ())


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_against_numpy(inputs):
    x, h, c, weight_ih, weight_hh, *biases = (tensor.detach().numpy() for tensor in inputs)
    gates = x @ weight_ih.T + h @ weight_hh.T + sum(biases)
    i, f, g, o = (gates[:, k * N : (k + 1) * N] for k in range(4))
    c_next = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h_next = sigmoid(o) * np.tanh(c_next)
    for actual, expected in zip(lstm_cell(*inputs), (h_next, c_next), strict=True):
        np.testing.assert_allclose(actual.detach(), expected, atol=1e-13)


def test_gradients(inputs):
    assert gradcheck(lstm_cell, inputs, fast_mode=True)


def test_takes_the_parameters_of_nn_lstmcell():
    module = nn.LSTMCell(N_IN, N)
    x, h, c = torch.randn(BATCH, N_IN), torch.randn(BATCH, N), torch.randn(BATCH, N)
    for actual, expected in zip(lstm_cell(x, h, c, *module.parameters()), module(x, (h, c)), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
