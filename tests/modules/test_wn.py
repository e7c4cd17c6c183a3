"""WN as a drop-in for the published one: names, values, mask, errors."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from fastglow.modules import WN

from ..kernels.checks import assert_refused

N_IN, N_MEL, LAYERS, CHANNELS = 3, 5, 3, 4


@pytest.fixture
def wn():
    """In float64, with a nonzero last layer."""
    module = WN(N_IN, N_MEL, LAYERS, CHANNELS, 3).double()
    with torch.no_grad():
        for parameter in module.end.parameters():
            parameter.normal_()
    return module


def inputs(dtype=torch.float64):
    return torch.randn(2, N_IN, 11, dtype=dtype), torch.randn(2, N_MEL, 11, dtype=dtype)


def test_state_dict_has_the_published_keys(wn):
    expected = {"start": (CHANNELS, N_IN, 1)}
    for i in range(LAYERS):
        expected[f"in_layers.{i}"] = (2 * CHANNELS, CHANNELS, 3)
        expected[f"cond_layers.{i}"] = (2 * CHANNELS, N_MEL, 1)
        expected[f"res_skip_layers.{i}"] = (CHANNELS if i == LAYERS - 1 else 2 * CHANNELS, CHANNELS, 1)
    shapes = {"end.weight": (2 * N_IN, CHANNELS, 1), "end.bias": (2 * N_IN,)}
    for name, shape in expected.items():
        shapes |= {f"{name}.bias": shape[:1], f"{name}.weight_g": (shape[0], 1, 1), f"{name}.weight_v": shape}
    assert {key: tuple(value.shape) for key, value in wn.state_dict().items()} == shapes


def test_starts_as_zero():
    module = WN(N_IN, N_MEL, LAYERS, CHANNELS, 3)
    assert not module(*inputs(torch.float32)).any()


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_against_plain_convolutions(kernel_size, n_layers):
    """From the state_dict alone, without the module's own operations."""
    module = WN(N_IN, N_MEL, n_layers, CHANNELS, kernel_size).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    state = module.state_dict()

    def convolve(x, name, dilation=1):
        v = state[f"{name}.weight_v"]
        weight = state[f"{name}.weight_g"] * v / v.square().sum(dim=(1, 2), keepdim=True).sqrt()
        reach = dilation * (v.shape[2] // 2)
        return F.conv1d(F.pad(x, (reach, reach)), weight, state[f"{name}.bias"], dilation=dilation)

    audio, spect = inputs()
    h, skips = convolve(audio, "start"), 0
    for i in range(n_layers):
        a = convolve(h, f"in_layers.{i}", 2**i) + convolve(spect, f"cond_layers.{i}")
        res_skip = convolve(torch.tanh(a[:, :CHANNELS]) * torch.sigmoid(a[:, CHANNELS:]), f"res_skip_layers.{i}")
        if i < n_layers - 1:
            h = h + res_skip[:, :CHANNELS]
        skips = skips + res_skip[:, -CHANNELS:]
    expected = F.conv1d(skips, state["end.weight"], state["end.bias"])
    torch.testing.assert_close(module(audio, spect), expected, atol=1e-11, rtol=0)


def test_every_parameter_gets_a_gradient(wn):
    wn(*inputs()).square().sum().backward()
    for name, parameter in wn.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_batched_with_a_mask_as_alone(wn):
    audio, spect = inputs()
    lengths = [11, 4]
    mask = (torch.arange(11) < torch.tensor(lengths).unsqueeze(1)).unsqueeze(1).double()
    output = wn(audio, spect, mask)
    for item, length in enumerate(lengths):
        alone = wn(audio[item : item + 1, :, :length], spect[item : item + 1, :, :length])
        torch.testing.assert_close(output[item : item + 1, :, :length], alone, atol=1e-12, rtol=0)


def test_copies(wn):
    arguments = inputs()
    for twin in (copy.deepcopy(wn), pickle.loads(pickle.dumps(wn))):
        assert torch.equal(twin(*arguments), wn(*arguments))
    assert wn.half()(*inputs(torch.float16)).dtype == torch.float16
    assert "in_layers" in repr(wn)


@pytest.mark.parametrize(
    ("n_channels", "kernel_size", "names"), [(4, 2, "kernel_size=2 must be odd"), (5, 3, "n_channels=5 must be even")]
)
def test_errors(n_channels, kernel_size, names):
    assert_refused(names, WN, N_IN, N_MEL, LAYERS, n_channels, kernel_size)


@pytest.mark.parametrize("n_channels", [4, 8], ids=["too narrow to fold", "folded"])
@pytest.mark.parametrize("masking", ["none", "mask", "lengths"])
def test_without_gradients_it_computes_the_same(n_channels, masking):
    module = WN(N_IN, N_MEL, LAYERS, n_channels, 3).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    audio, spect = inputs()
    lengths = torch.tensor([11, 6])
    options = {}
    if masking == "mask":
        options["mask"] = (torch.arange(11) < lengths.unsqueeze(1)).unsqueeze(1).double()
    if masking == "lengths":
        options["lengths"] = lengths
    expected = module(audio, spect, **options)
    with torch.no_grad():
        found = module(audio, spect, **options)
    inside = torch.arange(11) < lengths.unsqueeze(1) if masking == "lengths" else torch.ones(2, 11, dtype=bool)
    for item in range(2):
        torch.testing.assert_close(found[item][:, inside[item]], expected[item][:, inside[item]], atol=1e-11, rtol=0)


def test_lengths_have_the_effect_of_a_mask(wn):
    audio, spect = inputs()
    lengths = torch.tensor([11, 6])
    mask = (torch.arange(11) < lengths.unsqueeze(1)).unsqueeze(1).double()
    by_mask = wn(audio, spect, mask)
    by_lengths = wn(audio, spect, lengths=lengths)
    torch.testing.assert_close(by_lengths[0], by_mask[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(by_lengths[1, :, :6], by_mask[1, :, :6], atol=1e-12, rtol=0)


def test_autocast_with_and_without_gradients(wn):
    wn.float()
    audio, spect = inputs(torch.float32)
    expected = wn(audio, spect)
    with torch.autocast("cpu", torch.bfloat16):
        trained = wn(audio, spect)
        with torch.no_grad():
            inferred = wn(audio, spect)
    assert trained.dtype == inferred.dtype == torch.bfloat16
    scale = expected.abs().max()
    assert (trained - expected).abs().max() < 0.05 * scale
    assert (inferred - expected).abs().max() < 0.05 * scale
    with torch.no_grad():
        torch.testing.assert_close(wn(audio, spect), expected, atol=1e-5, rtol=0)
