"""The LSTM cell: the reference against NumPy and scalar arithmetic, and the arguments."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from fastglow.kernels import lstm_cell
from fastglow.kernels.reference.lstm_cell import MASK_STREAM

from .checks import assert_fraction, assert_refused, assert_same_bits, assert_seeded_by_pytorch, zeros_for_shapes
from .test_philox import philox_in_python

BATCH, N_IN, N = 3, 5, 7

OPTIONS = {
    "plain": {},
    "dropout of h": {"p_dropout_h": 0.3, "seed": 7},
    "dropout of h and c": {"p_dropout_h": 0.1, "p_dropout_c": 0.6, "seed": -(2**40) - 1},
    "zoneout of h": {"p_zoneout_h": 0.4, "seed": 2**63 - 1},
    "zoneout of c": {"p_zoneout_c": 0.4, "seed": 0},
    "everything": {"p_dropout_h": 0.2, "p_dropout_c": 0.3, "p_zoneout_h": 0.4, "p_zoneout_c": 0.5, "seed": 3},
    "everything, not training": {
        "p_dropout_h": 0.2, "p_dropout_c": 0.3, "p_zoneout_h": 0.4, "p_zoneout_c": 0.1, "training": False
    },
}  # fmt: skip


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


def below_in_python(i, word, p, seed):
    """Whether mask `word` of element i is set."""
    seed %= 2**64
    words = philox_in_python((i % 2**32, i // 2**32, 0, MASK_STREAM), (seed % 2**32, seed // 2**32))
    return (words[word] >> 8) * 2.0**-24 < p


@pytest.mark.parametrize("options", list(OPTIONS.values())[1:-1], ids=list(OPTIONS)[1:-1])
def test_masks_one_element_at_a_time(inputs, options):
    """h has masks 0 (dropout) and 2 (zoneout), c has 1 and 3."""
    plain, mixed = lstm_cell(*inputs), lstm_cell(*inputs, **options)
    for k, name in enumerate("hc"):
        p_dropout, p_zoneout = (options.get(f"p_{kind}_{name}", 0.0) for kind in ("dropout", "zoneout"))
        elements = (x.flatten().tolist() for x in (inputs[1 + k], plain[k], mixed[k]))
        for i, (old, new, actual) in enumerate(zip(*elements, strict=True)):
            expected = old if below_in_python(i, 2 + k, p_zoneout, options["seed"]) else new
            dropped = below_in_python(i, k, p_dropout, options["seed"])
            assert actual == pytest.approx(0.0 if dropped else expected / (1 - p_dropout), rel=1e-13)


def test_without_training_zoneout_is_an_expectation_and_nothing_is_dropped(inputs):
    _, h, c, *_ = inputs
    next_h, next_c = lstm_cell(*inputs)
    actual = lstm_cell(*inputs, **OPTIONS["everything, not training"])
    torch.testing.assert_close(actual[0], 0.4 * h + 0.6 * next_h, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(actual[1], 0.1 * c + 0.9 * next_c, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients(inputs, options):
    assert gradcheck(lambda *inputs: lstm_cell(*inputs, **options), inputs, fast_mode=True)


def test_takes_the_parameters_of_nn_lstmcell():
    cell = nn.LSTMCell(N_IN, N)
    x, h, c = torch.randn(BATCH, N_IN), torch.randn(BATCH, N), torch.randn(BATCH, N)
    for actual, expected in zip(lstm_cell(x, h, c, *cell.parameters()), cell(x, (h, c)), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_masks_have_the_given_probability(p):
    B, n = 200, 500
    state = torch.zeros(B, 1), torch.full((B, n), 2.0), torch.full((B, n), 3.0)
    weights = torch.zeros(4 * n, 1), torch.zeros(4 * n, n)
    dropped = lstm_cell(*state, *weights, p_dropout_h=p, p_dropout_c=p, seed=3)
    kept = lstm_cell(*state, *weights, p_zoneout_h=p, p_zoneout_c=p, seed=3)
    masks = [dropped[0] == 0, dropped[1] == 0, kept[0] == 2, kept[1] == 3]
    for k, mask in enumerate(masks):
        assert_fraction(mask, p)
        for other in masks[:k]:  # independent of each other
            assert_fraction(mask & other, p * p, deviations=3)


def draw_inputs(device="cpu"):
    shapes = (BATCH, N_IN), (BATCH, N), (BATCH, N), (4 * N, N_IN), (4 * N, N), (4 * N,), (4 * N,)
    return [torch.randn(shape, device=device) for shape in shapes]


def check_seeded_by_pytorch(device):
    inputs = draw_inputs(device)
    assert_seeded_by_pytorch(lambda: lstm_cell(*inputs, p_dropout_h=0.5, p_zoneout_c=0.5))


def test_without_a_seed_the_masks_come_from_pytorchs_generator():
    check_seeded_by_pytorch("cpu")


def test_calls_without_random_masks_do_not_advance_pytorchs_generator():
    inputs = draw_inputs()
    before = torch.get_rng_state()
    lstm_cell(*inputs)
    lstm_cell(*inputs, p_dropout_h=0.5, p_zoneout_c=0.5, training=False)
    assert torch.equal(torch.get_rng_state(), before)


def test_reference_under_autocast_is_torch_lstm_cell():
    inputs = draw_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        actual = lstm_cell(*inputs)
        x, h, c, *weights = inputs
        expected = torch.lstm_cell(x, (h, c), *weights)
    assert_same_bits(actual, expected)


WRONG = {
    r"x has shape \[5\], must be \[B, n_in\]": {"x": (5,)},
    r"h has shape \[7\], must be \[3, n\]": {"h": (7,)},
    r"h has shape \[2, 7\], must be \[3, n\]": {"h": (2, 7)},
    r"c has shape \[3, 6\], must be \[3, 7\]": {"c": (3, 6)},
    r"weight_ih has shape \[28, 6\], must be \[28, 5\]": {"weight_ih": (28, 6)},
    r"weight_hh has shape \[7, 7\], must be \[28, 7\]": {"weight_hh": (7, 7)},
    "x has dtype float32 and c float64: cast one, or use autocast": {"c": torch.zeros(BATCH, N).double()},
    "weight_hh has dtype int64, must be a floating-point dtype": {"weight_hh": torch.zeros(4 * N, N).long()},
    r"bias_ih has shape \[7\], must be \[28\]": {"bias_ih": (7,)},
    "only one of bias_ih and bias_hh is given: pass both or neither": {"bias_hh": None},
    "p_dropout_h=1.0 must be at least 0 and below 1": {"p_dropout_h": 1.0},
    "p_zoneout_c=-0.1 must be at least 0 and below 1": {"p_zoneout_c": -0.1},
    "seed=9223372036854775808 does not fit in 64 bits": {"seed": 2**63},
    r"seed has dtype int64, shape \[1\]": {"seed": torch.zeros(1, dtype=torch.int64)},
    r"seed has dtype float32, shape \[\], device cpu": {"seed": torch.zeros(())},
}


@pytest.mark.parametrize("message", WRONG)
def test_errors_name_what_is_wrong(message):
    shapes = {
        "x": (BATCH, N_IN), "h": (BATCH, N), "c": (BATCH, N), "weight_ih": (4 * N, N_IN), "weight_hh": (4 * N, N),
        "bias_ih": (4 * N,), "bias_hh": (4 * N,),
    }  # fmt: skip
    assert_refused(message, lstm_cell, **zeros_for_shapes(shapes | WRONG[message]))
