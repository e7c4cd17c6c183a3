"""The prenet: its layers against NumPy, its dropout against given and against PyTorch's random numbers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from fastglow.kernels import prenet

LEADING = [(), (3,), (2, 3)]


@pytest.fixture(params=LEADING, ids=lambda shape: f"leading {shape}")
def leading(request):
    return request.param


def test_given_noise_against_numpy(leaf, leading):
    x, weights = leaf(*leading, 4), [leaf(5, 4), leaf(5, 5), leaf(5, 5)]
    noise = torch.rand(3, *leading, 5)
    expected = x.detach().numpy()
    for weight, numbers in zip(weights, noise.numpy(), strict=True):
        expected = np.maximum(expected @ weight.detach().numpy().T, 0)
        expected = np.where(numbers >= np.float32(0.3), expected / 0.7, 0)
    output = prenet(x, weights, 0.3, noise)
    assert output.shape == (*leading, 5)
    np.testing.assert_allclose(output.detach(), expected, atol=1e-12)


def test_gradients_with_given_noise(leaf, leading):
    noise = torch.rand(2, *leading, 5)

    def function(x, *weights):
        return prenet(x, weights, 0.5, noise)

    assert gradcheck(function, (leaf(*leading, 4), leaf(5, 4), leaf(5, 5)))


def test_gradients_without_dropout(leaf):
    def function(x, *weights):
        return prenet(x, weights, 0.0)

    assert gradcheck(function, (leaf(3, 4), leaf(5, 4), leaf(7, 5)))


def test_a_unit_is_kept_from_p_dropout_on():
    noise = torch.tensor([[0.0, 0.4999999, 0.5, 0.9999999]])
    assert prenet(torch.ones(4), [torch.eye(4)], 0.5, noise).tolist() == [0, 0, 2, 2]


def test_without_dropout_the_noise_does_not_matter():
    x, weights = torch.randn(3, 4), [torch.randn(5, 4), torch.randn(5, 5)]
    expected = F.relu(F.relu(x @ weights[0].T) @ weights[1].T)
    torch.testing.assert_close(prenet(x, weights, 0.0), expected)
    torch.testing.assert_close(prenet(x, weights, 0.0, torch.zeros(2, 3, 5)), expected)


def test_without_noise_it_takes_pytorchs_random_numbers_layer_by_layer():
    x, weights = torch.randn(3, 4), [torch.randn(5, 4), torch.randn(5, 5)]
    torch.manual_seed(1)
    output = prenet(x, weights, 0.3)
    torch.manual_seed(1)
    expected = x
    for weight in weights:
        expected = F.dropout(F.relu(expected @ weight.T), 0.3)
    assert torch.equal(output, expected)


@pytest.mark.parametrize("given", [True, False], ids=["given noise", "own noise"])
def test_the_share_of_units_that_is_dropped(given):
    n = 40_000
    output = prenet(torch.ones(n, 1), [torch.ones(1, 1)], 0.2, torch.rand(1, n, 1) if given else None)
    assert set(output.unique().tolist()) == {0.0, 1.25}
    # Five standard deviations of a binomial share.
    assert abs((output == 0).double().mean() - 0.2) < 5 * (0.2 * 0.8 / n) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_is_kept(dtype):
    output = prenet(torch.randn(2, 3, dtype=dtype), [torch.randn(4, 3, dtype=dtype)], 0.5, torch.rand(1, 2, 4))
    assert output.dtype == dtype
