"""WN of VITS, Glow-TTS and WaveGlow: the same results, gradients and random numbers before and after."""

import pytest
import torch
from torch import nn

from fastglow import accelerate
from fastglow.kernels import backend

from .comparing import assert_close, assert_same_results, results, shown
from .rebuilt import NORMS, DiffSingerOrderWN, TransformersWN, TupleWN, TwoArgumentsWN, VitsStyleWN


def masked(B, T, *ends):
    return (torch.arange(T) < torch.tensor(ends).view(B, 1)).unsqueeze(1).float()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("drops_before", [False, True])
@pytest.mark.parametrize("p_dropout", [0.0, 0.3])
def test_vits_wn(norm, drops_before, p_dropout):
    torch.manual_seed(1)
    wn = VitsStyleWN(gin_channels=3, p_dropout=p_dropout, drops_before=drops_before, norm=NORMS[norm])
    x, g = torch.randn(2, 6, 13), torch.randn(2, 3, 1)
    assert_same_results(wn, lambda wn, x, mask, g: wn(x, mask, g=g), [x, masked(2, 13, 13, 7), g], "wavenet_layer")


@pytest.mark.parametrize(
    "call",
    [
        lambda wn, x, mask, g: wn(x),
        lambda wn, x, mask, g: wn(x, mask),
        lambda wn, x, mask, g: wn(x, x_mask=mask, other="ignored"),
        lambda wn, x, mask, g: wn(x, mask[:1]),
        lambda wn, x, mask, g: wn(x, mask[:, :, :1]),
        lambda wn, x, mask, g: wn(x, mask.bool(), g),
        lambda wn, x, mask, g: wn(x, mask * 0.5, g.expand(2, 3, 13)),
    ],
)
def test_every_argument_of_a_vits_wn_present_and_absent(call):
    torch.manual_seed(2)
    wn = VitsStyleWN(gin_channels=3, kernel_size=5, dilation_rate=1, n_layers=2)
    x, g = torch.randn(2, 6, 13), torch.randn(2, 3, 1)
    assert_same_results(wn, call, [x, masked(2, 13, 13, 7), g], "wavenet_layer")


@pytest.mark.parametrize("drops_before", [False, True])
@pytest.mark.parametrize("call", [
    lambda wn, x, mask, g: wn(x, mask),
    lambda wn, x, mask, g: wn(x, mask, g),
    lambda wn, x, mask, g: wn(inputs=x, padding_mask=mask, global_conditioning=g),
])  # fmt: skip
def test_wavenet_of_transformers(call, drops_before):
    torch.manual_seed(6)
    wn = TransformersWN(gin_channels=3, p_dropout=0.2, drops_before=drops_before, norm=NORMS["parametrization"])
    x, g = torch.randn(2, 6, 13), torch.randn(2, 3, 1)
    assert_same_results(wn, call, [x, masked(2, 13, 13, 7), g], "wavenet_layer")


@pytest.mark.parametrize("p_dropout", [0.0, 0.3])
@pytest.mark.parametrize("x_size, mask_size, g_size", [
    ((1, 13), (3, 13), (1, 1)),
    ((1, 13), (1, 13), (3, 1)),
    ((3, 13), (1, 1), (1, 13)),
    ((2, 1), (2, 13), (2, 1)),
    ((2, 1), (2, 1), (2, 13)),
    ((0, 13), (0, 13), (0, 1)),
])  # fmt: skip
def test_sizes_that_are_broadcast(x_size, mask_size, g_size, p_dropout):
    torch.manual_seed(7)
    wn = VitsStyleWN(gin_channels=3, n_layers=1, p_dropout=p_dropout)
    x, mask, g = (torch.rand(size[0], n, size[1]) for size, n in ((x_size, 6), (mask_size, 1), (g_size, 3)))
    assert_same_results(wn, lambda wn, x, mask, g: wn(x, mask, g), [x, mask, g], "wavenet_layer")


@pytest.mark.parametrize("audio_size, spect_size", [((2, 11), (1, 11)), ((1, 11), (2, 11)), ((2, 11), (2, 1))])
@pytest.mark.parametrize("cls", [TupleWN, TwoArgumentsWN])
def test_sizes_that_waveglow_broadcasts(cls, audio_size, spect_size):
    inputs = [torch.randn(size[0], n, size[1]) for size, n in ((audio_size, 2), (spect_size, 5))]
    call = (lambda wn, a, s: wn((a, s))) if cls is TupleWN else (lambda wn, a, s: wn(a, s))
    assert_same_results(cls(), call, inputs, "wavenet_layer")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("p_dropout", [0.0, 0.3])
def test_dtypes_under_autocast(training, gradients, p_dropout):
    """With a mask of any kind, the sums are in the dtype of the signal; WaveGlow's are in that of autocast."""
    torch.manual_seed(8)
    wn, coupling = VitsStyleWN(p_dropout=p_dropout).train(training), TupleWN().train(training)
    x = torch.randn(2, 6, 9)
    mask = masked(2, 9, 9, 4)
    calls = [lambda: wn(x), lambda: wn(x, mask), lambda: wn(x, mask.bool()), lambda: coupling((x[:, :2], x[:, 1:]))]

    def run():
        torch.manual_seed(9)
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(gradients):
            return [call().detach() for call in calls]

    shown(coupling)
    expected = run()
    accelerate(nn.ModuleList([wn, coupling]), strict=True)
    for a, b in zip(expected, run(), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05 * float(a.abs().max()))


@pytest.mark.parametrize("channels, n_layers, T", [(2, 1, 1), (10, 4, 3), (6, 3, 40)])
def test_odd_sizes(channels, n_layers, T):
    torch.manual_seed(3)
    wn = VitsStyleWN(channels, n_layers=n_layers, kernel_size=7, dilation_rate=3)
    assert_same_results(wn, lambda wn, x: wn(x, torch.ones(1, 1, T)), [torch.randn(1, channels, T)], "wavenet_layer")


@pytest.mark.parametrize("drops_before", [False, True])
def test_dropout_that_is_turned_on_later_has_its_place(drops_before):
    torch.manual_seed(4)
    wn = VitsStyleWN(p_dropout=0.0, drops_before=drops_before)
    accelerate(wn, strict=True)
    wn.drop.p = 0.4
    x = torch.randn(2, 6, 9)
    after = results(wn, lambda wn, x: wn(x), [x], True)
    accelerate(wn).undo()  # of a second call: swapped before
    fresh = VitsStyleWN(p_dropout=0.4, drops_before=drops_before)
    fresh.load_state_dict(wn.state_dict())
    assert_close(results(fresh, lambda wn, x: wn(x), [x], True), after)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("one_cond", [True, False])
@pytest.mark.parametrize("cls", [TupleWN, TwoArgumentsWN])
def test_waveglow_wn(norm, one_cond, cls):
    torch.manual_seed(5)
    wn = cls(norm=NORMS[norm], one_cond=one_cond)
    inputs = [torch.randn(3, 2, 11), torch.randn(3, 5, 11)]
    call = (lambda wn, a, s: wn((a, s))) if cls is TupleWN else (lambda wn, a, s: wn(a, s))
    assert_same_results(wn, call, inputs, "wavenet_layer")


def test_a_row_of_zeros_without_weight_norm():
    wn = shown(TupleWN(norm=NORMS["plain"]))
    with torch.no_grad():
        wn.in_layers[0].weight[3] = 0.0
        wn.cond_layer.weight[5] = 0.0
    assert_same_results(wn, lambda wn, a, s: wn((a, s)), [torch.randn(1, 2, 7), torch.randn(1, 5, 7)], "wavenet_layer")


@pytest.mark.parametrize("dim", [None, 0, 1])
@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("norm", ["hook", "parametrization"])
@pytest.mark.parametrize("cls", [VitsStyleWN, TupleWN, TwoArgumentsWN])
def test_weight_norm_of_any_kind(cls, norm, later, name, dim):
    """Also of `end`, over all dimensions or others, of the bias; its hook is that of a call, which may never come."""
    torch.manual_seed(10)
    wn, dim = cls(norm=NORMS["plain"]), dim if name == "weight" else None
    wn = shown(wn)
    inputs = [torch.randn(2, 6, 9)] if cls is VitsStyleWN else [torch.randn(2, 2, 9), torch.randn(2, 5, 9)]

    def run():
        with torch.no_grad():
            return wn(*inputs) if cls is not TupleWN else wn(inputs)

    if later:
        accelerate(wn, strict=True)
        run()
    for conv in [part for part in wn.modules() if isinstance(part, nn.Conv1d)]:
        NORMS[norm](conv, name, dim)
    if not later:
        accelerate(wn, strict=True)
    for factor in (1.0, 1.3):
        with torch.no_grad():
            for parameter in wn.parameters():
                parameter.mul_(factor)
        found = run()
        accelerated = type(wn)
        wn.__class__ = cls
        expected = run()
        wn.__class__ = accelerated
        assert_close([expected], [found])


def test_a_dilation_that_is_changed_later():
    wn, x = VitsStyleWN(norm=NORMS["plain"]), torch.randn(1, 6, 9)
    accelerate(wn, strict=True)
    with torch.no_grad():
        wn(x)
        for conv in wn.in_layers:
            conv.dilation = conv.padding = (3,)
        assert_close([VitsStyleWN.forward(wn, x)], [wn(x)])


def test_the_order_of_the_halves_is_noticed():
    wn = DiffSingerOrderWN()
    (entry,) = accelerate(wn).left
    assert "differ" in entry.text
    assert type(wn) is DiffSingerOrderWN


def test_another_structure_is_named():
    wn = VitsStyleWN()
    wn.in_layers[1].stride = (2,)
    (entry,) = accelerate(wn).left
    assert "in_layers.1 has stride=(2,), must be (1,)" in entry.text
    wn = VitsStyleWN(gin_channels=3)
    wn.cond_layer = nn.Conv1d(3, 5, 1)
    (entry,) = accelerate(wn).left
    assert "cond_layer has 5 channels, must have 36" in entry.text
    wn = TupleWN()
    wn.in_layers[2].dilation, wn.in_layers[2].padding = (3,), (3,)
    (entry,) = accelerate(wn).left
    assert "in_layers.2 has dilation=(3,), must be (4,)" in entry.text
    del wn.cond_layer
    (entry,) = accelerate(wn).left
    assert "neither a cond_layer nor cond_layers" in entry.text
    wn = TupleWN(norm=lambda conv: nn.Conv1d(conv.in_channels, conv.out_channels, 1, bias=False))
    assert "a convolution has no bias" in accelerate(wn).left[0].text


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("wn", [VitsStyleWN(channels=16), TupleWN(n_channels=16)], ids=["vits", "waveglow"])
def test_the_kernels_run(wn, training):
    wn = shown(wn)
    inputs = [torch.randn(1, 16, 5)] if isinstance(wn, VitsStyleWN) else [torch.randn(1, 2, 5), torch.randn(1, 5, 5)]

    def call(wn, *inputs):
        return wn(*inputs) if isinstance(wn, VitsStyleWN) else wn(inputs)

    expected = results(wn, call, inputs, training, gradients=training)
    accelerate(wn, strict=True)
    with backend.use_backend("triton"):
        before = backend.launches["wavenet_layer"]
        found = results(wn, call, inputs, training, gradients=training)
    assert backend.launches["wavenet_layer"] > before
    assert_close(expected, found)
