"""One WaveNet layer against a loop over positions and taps in NumPy; what its mask means."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from fastglow.kernels import wavenet_layer

BATCH, CHANNELS, CONDITIONING, TIME = 2, 3, 5, 7
LENGTHS = torch.tensor([7, 4])
MASK = (torch.arange(TIME) < LENGTHS.unsqueeze(1)).unsqueeze(1).double()  # [B, 1, T]


@pytest.fixture(params=[True, False], ids=["last", "not last"])
def last(request):
    return request.param


@pytest.fixture(params=[(1, 1), (3, 1), (3, 2), (5, 3), (3, 8)], ids=lambda p: f"kernel {p[0]} dilation {p[1]}")
def layer(request, leaf, last):
    """(conditioning and parameters, dilation); dilation 8 reaches past both ends from everywhere."""
    kernel_size, dilation = request.param
    n_res_skip = CHANNELS if last else 2 * CHANNELS
    return (
        leaf(BATCH, CONDITIONING, TIME),
        leaf(2 * CHANNELS, CHANNELS, kernel_size),
        leaf(2 * CHANNELS),
        leaf(2 * CHANNELS, CONDITIONING, 1),
        leaf(2 * CHANNELS),
        leaf(n_res_skip, CHANNELS, 1),
        leaf(n_res_skip),
    ), dilation


def position(h, t, conditioning, in_weight, in_bias, cond_weight, cond_bias, rs_weight, rs_bias, dilation):
    """The 1x1 convolutions' output at position `t` of one item, [n_res_skip]."""
    kernel_size = in_weight.shape[2]
    activation = in_bias + cond_weight[:, :, 0] @ conditioning[:, t] + cond_bias
    for tap in range(kernel_size):
        source = t + (tap - kernel_size // 2) * dilation
        if 0 <= source < h.shape[1]:
            activation = activation + in_weight[:, :, tap] @ h[:, source]
    n = len(h)
    gated = np.tanh(activation[:n]) / (1 + np.exp(-activation[n:]))
    return rs_weight[:, :, 0] @ gated + rs_bias


@pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
def test_against_a_loop(leaf, layer, last, mask):
    arguments, dilation = layer
    h = leaf(BATCH, CHANNELS, TIME)
    h_next, skip = wavenet_layer(h, *arguments, dilation, mask)
    assert skip.shape == h.shape
    signal, conditioning, *parameters = (x.detach().numpy() for x in (h, *arguments))
    for item in range(BATCH):
        for t in range(TIME):
            res_skip = position(signal[item], t, conditioning[item], *parameters, dilation)
            np.testing.assert_allclose(skip[item, :, t].detach(), res_skip[-CHANNELS:], atol=1e-13)
            if not last:
                expected = res_skip[:CHANNELS] + signal[item, :, t]
                if mask is not None:
                    expected = expected * mask[item, 0, t].item()
                np.testing.assert_allclose(h_next[item, :, t].detach(), expected, atol=1e-13)
    assert (h_next is None) == last


@pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
def test_gradients(leaf, layer, mask):
    arguments, dilation = layer

    def function(*inputs):
        return tuple(x for x in wavenet_layer(*inputs, dilation, mask) if x is not None)

    assert gradcheck(function, (leaf(BATCH, CHANNELS, TIME), *arguments), fast_mode=True)


def test_with_a_mask_an_item_gets_what_it_gets_alone(leaf, layer, last):
    (conditioning, *parameters), dilation = layer
    h = leaf(BATCH, CHANNELS, TIME).detach() * MASK
    h_next, skip = wavenet_layer(h, conditioning, *parameters, dilation, MASK)
    for item, length in enumerate(LENGTHS.tolist()):
        alone = (x[item : item + 1, :, :length] for x in (h, conditioning))
        expected_h, expected_skip = wavenet_layer(*alone, *parameters, dilation)
        torch.testing.assert_close(skip[item : item + 1, :, :length], expected_skip, atol=1e-13, rtol=0)
        if not last:
            torch.testing.assert_close(h_next[item : item + 1, :, :length], expected_h, atol=1e-13, rtol=0)
            assert not h_next[item, :, length:].any()
