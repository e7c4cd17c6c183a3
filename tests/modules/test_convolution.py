"""Convolutions and linear layers against PyTorch's, with the published parameter names."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from fastglow.modules import ConvNorm, LinearNorm, WeightNormConv1d
from fastglow.modules.convolution import length_mask


def old_weight_norm(conv):
    """torch.nn.utils.weight_norm, which the published code uses and PyTorch has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(conv)


def random_weight_norm(*sizes):
    module = old_weight_norm(nn.Conv1d(*sizes))
    with torch.no_grad():
        module.weight_g.mul_(torch.rand_like(module.weight_g) + 0.5)  # initially g = |v|
    return module


@pytest.mark.parametrize("sizes", [(3, 5, 1), (3, 5, 3), (1, 1, 4)], ids=str)
def test_weight_norm_conv_loads_pytorchs_old_keys(sizes):
    theirs, ours = random_weight_norm(*sizes), WeightNormConv1d(*sizes)
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["bias", "weight_g", "weight_v"]
    x = torch.randn(2, sizes[0], 7)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.weight, theirs.weight, atol=1e-6, rtol=0)


def test_weight_norm_conv_saves_keys_that_pytorch_loads():
    ours = WeightNormConv1d(3, 5, 3)
    with torch.no_grad():
        ours.weight_g.mul_(2)
    x = torch.randn(2, 3, 7)
    for normalise in (old_weight_norm, parametrizations.weight_norm):
        theirs = normalise(nn.Conv1d(3, 5, 3))
        theirs.load_state_dict(ours.state_dict())
        torch.testing.assert_close(theirs(x), ours(x), atol=1e-6, rtol=0)


def test_weight_norm_conv_starts_as_a_plain_convolution():
    torch.manual_seed(3)
    ours = WeightNormConv1d(3, 5, 3)
    torch.manual_seed(3)
    plain = nn.Conv1d(3, 5, 3)
    torch.testing.assert_close(ours.weight, plain.weight, atol=1e-7, rtol=0)
    assert torch.equal(ours.bias, plain.bias)


def test_weight_norm_conv_trains_every_parameter_like_pytorchs():
    theirs, ours = random_weight_norm(3, 5, 3), WeightNormConv1d(3, 5, 3)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 7)
    for module in (ours, theirs):
        module(x).square().sum().backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad, atol=1e-4, rtol=1e-4)


def test_weight_norm_conv_weight_follows_its_parameters():
    module = WeightNormConv1d(3, 5, 3)
    before = module.weight.detach().clone()
    with torch.no_grad():
        module.weight_g.mul_(2)
    torch.testing.assert_close(module.weight, 2 * before)


def test_weight_norm_conv_copies():
    module = WeightNormConv1d(3, 5, 3)
    x = torch.randn(2, 3, 7)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), module(x))
        assert twin.weight_v is not module.weight_v
    assert module.half()(x.half()).dtype == torch.float16
    assert repr(module) == "WeightNormConv1d(3, 5, kernel_size=3)"


def test_linear_norm():
    module = LinearNorm(4, 3)
    assert list(module.state_dict()) == ["linear_layer.weight", "linear_layer.bias"]
    assert list(LinearNorm(4, 3, bias=False).state_dict()) == ["linear_layer.weight"]
    x = torch.randn(2, 5, 4)
    expected = torch.einsum("btj,ij->bti", x, module.linear_layer.weight) + module.linear_layer.bias
    torch.testing.assert_close(module(x), expected)


def test_conv_norm_keeps_the_length():
    module = ConvNorm(4, 3, 5)
    assert list(module.state_dict()) == ["conv.weight", "conv.bias"]
    assert list(ConvNorm(4, 3, 5, bias=False).state_dict()) == ["conv.weight"]
    x = torch.randn(2, 4, 7)
    assert module(x).shape == (2, 3, 7)
    expected = F.conv1d(F.pad(x, (2, 2)), module.conv.weight, module.conv.bias)
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize("gain", ["linear", "relu", "tanh", "sigmoid"])
def test_initialisation_is_xaviers(gain):
    """Uniform between +-gain * sqrt(6 / (fan in + fan out)), which a thousand values nearly reach."""
    for weight, fans in (
        (LinearNorm(30, 40, w_init_gain=gain).linear_layer.weight, 30 + 40),
        (ConvNorm(10, 20, 5, w_init_gain=gain).conv.weight, 5 * (10 + 20)),
    ):
        bound = nn.init.calculate_gain(gain) * (6 / fans) ** 0.5
        assert 0.98 * bound < weight.abs().max() <= bound


def test_length_mask():
    assert length_mask(torch.tensor([2, 0, 3]), 3).tolist() == [
        [True, True, False],
        [False, False, False],
        [True, True, True],
    ]
