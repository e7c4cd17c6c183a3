"""WN's form for inference on a CPU against itself in float64."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastglow.diagnosis.rounding import perturbed
from fastglow.errors import FastglowError
from fastglow.kernels import backend
from fastglow.kernels.cpu.wavenet import pack_wavenet
from fastglow.modules import WN, wn

from ..kernels.checks import assert_as_exact_as, assert_refused, assert_same_bits, strided

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


@settings(max_examples=40)
@given(
    n_layers=st.integers(1, 8),
    kernel_size=st.sampled_from([1, 3, 5]),
    n_in=st.integers(1, 4),
    channels=st.integers(4, 20).map(lambda half: 2 * half),
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=4).filter(any),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_an_item_has_the_bits_that_it_has_alone(n_layers, kernel_size, n_in, channels, lengths, dtype, seed):
    """Whatever is in the padding."""
    torch.manual_seed(seed)
    module = make(dtype, n_layers, kernel_size, channels, n_in)
    audio, spect = inputs(max(lengths), B=len(lengths), n_in=n_in)
    for i, n in enumerate(lengths):
        audio[i, :, n:], spect[i, :, n:] = torch.nan, torch.nan
    together = packed(module, audio, spect, lengths=torch.tensor(lengths, dtype=torch.int32))
    held = torch.empty(seed % 4099)
    for i, n in enumerate(lengths):
        if n:
            alone = packed(module, audio[i : i + 1, :, :n], spect[i : i + 1, :, :n])
            assert torch.equal(together[i : i + 1, :, :n], alone)
            assert bool(alone.isfinite().all())
    del held


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "strided"])
@pytest.mark.parametrize("signals", DTYPES, ids=str)
def test_signals_of_any_layout_and_dtype(layout, signals):
    module = make(torch.bfloat16)
    audio, spect = (x.to(signals) for x in inputs(23))
    expected = packed(module, audio.contiguous(), spect.contiguous())
    assert expected.dtype == signals
    lay = {
        "contiguous": torch.Tensor.contiguous,
        "channels-last": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        "strided": strided,
    }[layout]
    found = packed(module, lay(audio), lay(spect))
    torch.testing.assert_close(found.float(), expected.float(), atol=2e-2, rtol=2e-2)


def test_autocast_is_as_exact_as_the_reference_under_it():
    module = make(torch.float32)
    audio, spect = inputs(31)
    with torch.no_grad():
        exact = copy.deepcopy(module).double()(audio.double(), spect.double())
        with torch.autocast("cpu", torch.bfloat16):
            actual = packed(module, audio, spect)
            with backend.use_backend("reference"):
                plain = perturbed(lambda: [module(audio, spect)])[0]
    assert_as_exact_as(actual.bfloat16(), plain, exact, 2, CAPS[torch.bfloat16])
    torch.testing.assert_close(packed(module, audio, spect).double(), exact, atol=1e-4, rtol=1e-4)  # not its weights


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_packed_in_inference_mode_serve_outside(dtype):
    arguments, module = inputs(9), make(dtype)
    with torch.inference_mode():
        inside = packed(module, *arguments)
        loaded = copy.deepcopy(module)
        loaded.load_state_dict({name: x.clone() for name, x in module.state_dict().items()}, assign=True)
    assert next(loaded.parameters()).is_inference()
    for one in (module, module, loaded, pickle.loads(pickle.dumps(module))):
        assert_same_bits(packed(one, *arguments), inside)


def test_what_it_is_not_for():
    before = backend.cpu_calls.total()
    audio, spect = inputs(9)
    module = make(torch.float32)
    with torch.no_grad():
        module(audio, spect, torch.ones(2, 1, 9))
        make(torch.float64)(audio.double(), spect.double())
        make(torch.float32, channels=4)(audio, spect)  # its last layer is wider than the others
        with backend.use_backend("reference"):
            module(audio, spect)
    assert backend.cpu_calls.total() == before


MIXED = [  # weights, signals
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.float32, torch.float64),
    (torch.bfloat16, torch.float16),
    (torch.bfloat16, torch.float64),
    (torch.float16, torch.float32),
    (torch.float64, torch.float32),
]


@pytest.mark.parametrize("which", ["audio", "spect", "both"])
@pytest.mark.parametrize(("weights", "signals"), MIXED, ids=str)
def test_no_other_signals_are_cast(weights, signals, which):
    """As in PyTorch, where weights and inputs of different dtypes are an error."""
    module, (audio, spect) = make(weights), (x.to(weights) for x in inputs(9))
    audio, spect = audio if which == "spect" else audio.to(signals), spect if which == "audio" else spect.to(signals)
    with torch.no_grad():
        with pytest.raises(FastglowError if which == "spect" else RuntimeError, match="(?i)same|dtype|type"):
            module(audio, spect)
        module(audio.to(weights), spect.to(weights))


def test_without_onednn(monkeypatch):
    monkeypatch.setattr(wn, "supports", lambda dtype: False)
    audio, spect = inputs(9)
    for dtype in DTYPES:
        module = make(dtype)
        with torch.no_grad():
            exact = copy.deepcopy(module).double()(audio.double(), spect.double())
            torch.testing.assert_close(module(audio, spect).double(), exact, atol=CAPS[dtype], rtol=CAPS[dtype])


def take_a_step(module):
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    module(*inputs(5)).float().square().sum().backward()
    optimizer.step()


CHANGES = {
    "in place": lambda module: module.start.bias.add_(1),
    "optimizer": torch.enable_grad()(take_a_step),
    "load_state_dict": lambda module: module.load_state_dict(make(torch.float32).state_dict()),
    "replaced": lambda module: setattr(module.in_layers[1], "weight_g", nn.Parameter(torch.ones(2 * CHANNELS, 1, 1))),
    "bfloat16": lambda module: module.bfloat16(),
    "uncounted": lambda module: (module.end.bias.data.add_(1), module.refresh()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_changed_weights_are_packed_again(change):
    module, arguments = make(torch.float32), inputs(9)
    before = packed(module, *arguments)
    with torch.no_grad():
        change(module)
    changed = packed(module, *arguments)
    assert not torch.equal(changed, before)
    assert_same_bits(changed, packed(copy.deepcopy(module), *arguments))


def load(module):
    module.load_state_dict({name: x + 1 for name, x in module.state_dict().items()})


CHANGES_OF_INFERENCE_TENSORS = {
    "load_state_dict": load,
    "in place": lambda module: (module.start.bias.add_(1), module.refresh()),
    "replaced": CHANGES["replaced"],
    "bfloat16": CHANGES["bfloat16"],
}


@pytest.mark.parametrize("change", CHANGES_OF_INFERENCE_TENSORS.values(), ids=list(CHANGES_OF_INFERENCE_TENSORS))
@pytest.mark.parametrize("inside", [True, False], ids=["in inference mode", "outside"])
def test_weights_of_inference_mode_are_packed_once(monkeypatch, inside, change):
    packs = []
    monkeypatch.setattr(wn, "pack_wavenet", lambda *args: packs.append(1) or pack_wavenet(*args))
    with torch.inference_mode():
        module, arguments = make(torch.float32), inputs(9)
    assert all(x.is_inference() for x in module.parameters())
    with torch.inference_mode(inside):
        before = packed(module, *arguments)
        assert_same_bits(packed(module, *arguments), before)
        assert len(packs) == 1
        with torch.inference_mode():
            change(module)
        after = packed(module, *arguments)
        assert not torch.equal(after, before)
        assert_same_bits(packed(module, *arguments), after)
        assert len(packs) == 2
        assert_same_bits(packed(copy.deepcopy(module), *arguments), after)


def test_an_older_versions_pickle():
    module, arguments = make(torch.float32), inputs(9)
    expected = packed(module, *arguments)
    del module._packed
    for one in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert_same_bits(packed(one, *arguments), expected)
        assert one._packed._entry is not None


def test_packed_weights_are_not_copied():
    module, unused = make(torch.float32), make(torch.float32)
    packed(module, *inputs(9))
    assert len(pickle.dumps(module)) == len(pickle.dumps(unused))
    assert copy.deepcopy(module)._packed._entry is None and module._packed._entry is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, s: (a[:, :2], s), "audio has shape"),
        (lambda a, s: (a, s[:, :4]), "spect has shape"),
        (lambda a, s: (a, s[:, :, :4]), "spect has shape"),
        (lambda a, s: (a[:, :, :4], s), "spect has shape"),
        (lambda a, s: (a, s[:1]), "spect has shape"),
        (lambda a, s: (a[:1], s), "spect has shape"),
        (lambda a, s: (a[0], s[0]), "audio has shape"),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    with torch.no_grad():
        assert_refused(message, make(torch.float32), *change(*inputs(9)))


def test_lengths():
    module, (audio, spect) = make(torch.float32), inputs(9)
    full = packed(module, audio, spect)
    assert_same_bits(packed(module, audio, spect, lengths=torch.tensor([9, 12])), full)
    assert_same_bits(packed(module, audio, spect, lengths=torch.tensor([9, -4]))[0], full[0])
    with torch.no_grad():
        assert_refused(r"lengths has shape \[1\]", module, audio, spect, lengths=torch.tensor([9]))
        assert_refused("lengths has dtype float32", module, audio, spect, lengths=torch.tensor([9.0, 4.0]))
