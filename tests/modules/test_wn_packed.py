"""WN's form for inference on a CPU against itself in float64."""

import copy

import pytest
import torch

from fastglow import FastglowError
from fastglow.diagnosis.rounding import perturbed
from fastglow.kernels import backend
from fastglow.modules import WN, wn

from ..kernels.checks import assert_as_exact_as

N_IN, N_MEL, CHANNELS = 3, 10, 12
DTYPES = [torch.float32, torch.bfloat16]
CAPS = {torch.float32: 1e-5, torch.bfloat16: 1e-1}


def make(dtype, n_layers=3, kernel_size=3, channels=CHANNELS, n_in=N_IN):
    module = WN(n_in, N_MEL, n_layers, channels, kernel_size)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith("end."):
                parameter.normal_(0, channels**-0.5)
            elif name.endswith("bias"):
                parameter.normal_()
    return module.to(dtype)


def inputs(T, B=2, n_in=N_IN):
    """Not contiguous."""
    return torch.randn(B, 2 * n_in, T)[:, ::2], torch.randn(T, B, N_MEL).permute(1, 2, 0)


@torch.no_grad()
def packed(module, *args, **kw):
    before = backend.cpu_calls["wavenet_layer"]
    out = module(*args, **kw)
    assert backend.cpu_calls["wavenet_layer"] == before + module.n_layers
    return out


@pytest.mark.parametrize("T", [1, 7, 64, 129])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("n_layers", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_exact_as_pytorch(T, kernel_size, n_layers, dtype):
    module = make(dtype, n_layers, kernel_size)
    audio, spect = inputs(T)
    exact_module = copy.deepcopy(module).double()
    with torch.no_grad(), backend.use_backend("reference"):
        exact = exact_module(audio.double(), spect.double())
        plain = perturbed(lambda: [module(audio.to(dtype), spect.to(dtype))])[0]
    actual = packed(module, audio, spect)
    assert actual.dtype == torch.float32
    assert_as_exact_as(actual.to(dtype), plain, exact, 2, CAPS[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_item_has_the_bits_that_it_has_alone(dtype):
    module = make(dtype)
    audio, spect = inputs(40, B=4)
    lengths = torch.tensor([40, 0, 1, 23])
    together = packed(module, audio, spect, lengths=lengths)
    for i, n in enumerate(lengths.tolist()):
        if n:
            alone = packed(module, audio[i : i + 1, :, :n], spect[i : i + 1, :, :n])
            assert torch.equal(together[i : i + 1, :, :n], alone)


def test_what_it_is_not_for():
    before = backend.cpu_calls.total()
    audio, spect = inputs(9)
    module = make(torch.float32)
    module(audio, spect)
    with torch.no_grad():
        module(audio, spect, torch.ones(2, 1, 9))
        make(torch.float64)(audio.double(), spect.double())
        make(torch.float32, channels=4)(audio, spect)  # its last layer is wider than the others
        with backend.use_backend("reference"):
            module(audio, spect)
    assert backend.cpu_calls.total() == before


def test_without_onednn(monkeypatch):
    monkeypatch.setattr(wn, "supports", lambda dtype: False)
    audio, spect = inputs(9)
    for dtype in DTYPES:
        module = make(dtype)
        with torch.no_grad():
            exact = copy.deepcopy(module).double()(audio.double(), spect.double())
            torch.testing.assert_close(module(audio, spect).double(), exact, atol=CAPS[dtype], rtol=CAPS[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_changed_weights_are_packed_again(dtype):
    module = make(dtype)
    arguments = inputs(9)
    before = packed(module, *arguments)
    with torch.no_grad():
        module.start.bias.add_(1)
    changed = packed(module, *arguments)
    assert not torch.equal(changed, before)
    assert torch.equal(changed, packed(copy.deepcopy(module), *arguments))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, s: (a[:, :2], s), "audio has shape"),
        (lambda a, s: (a, s[:, :4]), "spect has shape"),
        (lambda a, s: (a, s[:, :, :4]), "spect has shape"),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    with torch.no_grad(), pytest.raises(FastglowError, match=message):
        make(torch.float32)(*change(*inputs(9)))
