"""Location-sensitive attention: the reference against a NumPy loop and a convolution, and the arguments."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from fastglow.kernels import location_attention
from fastglow.kernels.location_attention import fold_location

from .checks import assert_refused, assert_same_bits, zeros_for_shapes

BATCH, TIME, N_QUERY, N_MEMORY, ATTENTION, FILTERS = 3, 5, 3, 4, 7, 2
LENGTHS = torch.tensor([5, 1, 3])
MASKS = {"no mask": None, "mask": torch.arange(TIME) >= LENGTHS.unsqueeze(1)}


@pytest.fixture(params=[1, 3, 9], ids=lambda k: f"kernel {k}")
def inputs(request, leaf):
    """The positional arguments without the mask. Kernel 9 is longer than the text."""
    return (
        leaf(BATCH, N_QUERY),
        leaf(BATCH, TIME, N_MEMORY),
        leaf(BATCH, TIME, ATTENTION),
        leaf(BATCH, 2, TIME),
        leaf(ATTENTION, N_QUERY),
        leaf(FILTERS, 2, request.param),
        leaf(ATTENTION, FILTERS),
        leaf(1, ATTENTION),
    )


@pytest.fixture(params=MASKS)
def mask(request):
    return MASKS[request.param]


# Options besides the inputs and a mask; `v_bias` stands for a bias [1].
OPTIONS = {
    "plain": {},
    "bias": {"v_bias": True},
    "sharpened": {"sharpening": 2.5},
    "sigmoid": {"normalization": "sigmoid"},
    "all": {"v_bias": True, "sharpening": 0.5, "normalization": "sigmoid"},
}


def attention_of_one_item(
    query, memory, processed_memory, weights_cat, query_weight, conv, dense, v, length,
    v_bias=(0.0,), sharpening=1.0, normalization="softmax",
):  # fmt: skip
    """[n_memory] context and [T] weights of an item whose first `length` positions are text, in NumPy loops."""
    n_filters, _, kernel_size = conv.shape
    weights = np.zeros(len(memory))
    for t in range(length):
        location = np.zeros(n_filters)
        for tap in range(kernel_size):
            source = t + tap - kernel_size // 2
            if 0 <= source < len(memory):
                location += conv[:, :, tap] @ weights_cat[:, source]
        energy = v[0] @ np.tanh(query_weight @ query + dense @ location + processed_memory[t])
        energy = sharpening * (energy + v_bias[0])
        weights[t] = np.exp(energy) if normalization == "softmax" else 1 / (1 + np.exp(-energy))
    weights /= weights.sum()
    return weights @ memory, weights


def with_bias(options, bias):
    return {**options, "v_bias": bias} if "v_bias" in options else options


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_against_a_loop(inputs, mask, options):
    bias = torch.tensor([0.7], dtype=torch.float64)
    contexts, weights = location_attention(*inputs, mask, **with_bias(options, bias))
    assert contexts.shape == (BATCH, N_MEMORY)
    assert weights.shape == (BATCH, TIME)
    arrays = [x.detach().numpy() for x in inputs]
    for item in range(BATCH):
        length = TIME if mask is None else int(LENGTHS[item])
        context, expected = attention_of_one_item(
            *(x[item] for x in arrays[:4]), *arrays[4:], length, **with_bias(options, bias.numpy())
        )
        np.testing.assert_allclose(weights[item].detach(), expected, atol=1e-14)
        np.testing.assert_allclose(contexts[item].detach(), context, atol=1e-13)


def test_against_a_convolution(inputs, mask):
    query, memory, processed_memory, weights_cat, query_weight, conv, dense, v = inputs
    location = dense @ F.conv1d(weights_cat, conv, padding=conv.shape[2] // 2)  # [B, A, T]
    hidden = torch.tanh((query @ query_weight.T).unsqueeze(2) + location + processed_memory.transpose(1, 2))
    energies = F.conv1d(hidden, v.unsqueeze(2)).squeeze(1)
    if mask is not None:
        energies = torch.where(mask, -torch.inf, energies)
    expected = torch.softmax(energies, dim=1)
    contexts, weights = location_attention(*inputs, mask)
    torch.testing.assert_close(weights, expected, atol=1e-14, rtol=0)
    torch.testing.assert_close(contexts, torch.einsum("bt,btd->bd", expected, memory), atol=1e-13, rtol=0)


def test_gradients(inputs, mask):
    assert gradcheck(location_attention, (*inputs, mask), fast_mode=True)


@pytest.mark.parametrize("options", list(OPTIONS.values())[1:], ids=list(OPTIONS)[1:])
def test_gradients_with_options(inputs, options):
    bias = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)

    def attention(bias, *inputs):
        return location_attention(*inputs, lengths=LENGTHS, **with_bias(options, bias))

    assert gradcheck(attention, (bias, *inputs), fast_mode=True)


def test_lengths_are_a_mask(inputs):
    given = MASKS["mask"]
    other = torch.tensor([[False, True, False, False, False]] * BATCH)
    for mask in (None, other):
        expected = location_attention(*inputs, given if mask is None else given | mask)
        assert_same_bits(location_attention(*inputs, mask, lengths=LENGTHS), expected)


@pytest.mark.parametrize("normalization", ["softmax", "sigmoid"])
def test_an_item_that_is_all_padding_gets_zeros(inputs, normalization):
    lengths = torch.tensor([5, 0, 3])
    contexts, weights = location_attention(*inputs, lengths=lengths, normalization=normalization)
    assert not contexts[1].any() and not weights[1].any()
    gradients = torch.autograd.grad(contexts.sum() + (weights * weights).sum(), inputs)
    assert all(x.isfinite().all() for x in gradients)
    others = [0, 2]
    expected, _ = location_attention(
        *(x[others] for x in inputs[:4]), *inputs[4:], lengths=lengths[others], normalization=normalization
    )
    torch.testing.assert_close(contexts[others], expected, atol=1e-14, rtol=0)


def test_padding_gets_no_weight_and_has_no_influence(inputs):
    query, memory, processed_memory, weights_cat, *parameters = inputs
    mask = MASKS["mask"]
    weights_cat = weights_cat.masked_fill(mask.unsqueeze(1), 0.0)
    contexts, weights = location_attention(query, memory, processed_memory, weights_cat, *parameters, mask)
    assert not weights[mask].any()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(BATCH, dtype=torch.float64), atol=1e-14, rtol=0)
    for item, length in enumerate(LENGTHS.tolist()):
        alone = (x[item : item + 1, :length] for x in (memory, processed_memory))
        context, weight = location_attention(
            query[item : item + 1], *alone, weights_cat[item : item + 1, :, :length], *parameters
        )
        torch.testing.assert_close(weights[item : item + 1, :length], weight, atol=1e-14, rtol=0)
        torch.testing.assert_close(contexts[item : item + 1], context, atol=1e-13, rtol=0)


def test_large_energies_do_not_overflow(inputs):
    *arguments, v = inputs
    contexts, weights = location_attention(*arguments, 1e6 * v)
    assert contexts.isfinite().all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(BATCH, dtype=torch.float64))


def test_folded_weights_equal_convolution_and_dense_layer(inputs):
    conv, dense = inputs[5:7]
    folded = fold_location(conv, dense, torch.float64)
    taps = conv.shape[2]
    assert folded.shape == (ATTENTION, 64)
    assert not folded[:, 2 * taps :].any()
    expected = torch.einsum("af,fct->act", dense, conv)
    torch.testing.assert_close(folded[:, : 2 * taps].view(ATTENTION, 2, taps), expected, atol=1e-14, rtol=0)
    assert gradcheck(lambda *weights: fold_location(*weights, torch.float64), (conv, dense), fast_mode=True)


WRONG = {
    r"memory has shape \[2, 21\], must be \[B, T, n_memory\]": {"memory": (2, 21)},
    r"query_weight has shape \[18\], must be \[A, n_query\]": {"query_weight": (18,)},
    r"location_conv_weight has shape \[3, 2, 4\], must be \[F, 2, odd k\]": {"location_conv_weight": (3, 2, 4)},
    r"query has shape \[2, 7\], must be \[2, 6\]": {"query": (2, 7)},
    "processed_memory has shape": {"processed_memory": (2, 21, 19)},
    "attention_weights_cat has shape": {"attention_weights_cat": (2, 21)},
    "location_dense_weight has shape": {"location_dense_weight": (18, 2)},
    r"v_weight has shape \[18\]": {"v_weight": (18,)},
    "query has dtype float32 and memory float16: cast one, or use autocast": {"memory": torch.zeros(2, 21, 20).half()},
    "query has dtype float32 and v_bias float64": {"v_bias": torch.zeros(1).double()},
    r"v_bias has shape \[\], must be \[1\]": {"v_bias": ()},
    r"mask has shape \[2, 20\]": {"mask": torch.zeros(2, 20, dtype=torch.bool)},
    "mask has dtype uint8, must be bool": {"mask": torch.zeros(2, 21, dtype=torch.uint8)},
    r"lengths has shape \[3\]": {"lengths": torch.zeros(3, dtype=torch.int64)},
    "lengths has dtype float32, must be an integer dtype": {"lengths": torch.zeros(2)},
    r"location_weight has shape \[18, 10\], must be \[18, 64\]": {"location_weight": (18, 10)},
    "normalization='entmax' must be 'softmax' or 'sigmoid'": {"normalization": "entmax"},
}


@pytest.mark.parametrize("message", WRONG)
def test_errors_name_what_is_wrong(message):
    shapes = {
        "query": (2, 6), "memory": (2, 21, 20), "processed_memory": (2, 21, 18), "attention_weights_cat": (2, 2, 21),
        "query_weight": (18, 6), "location_conv_weight": (3, 2, 5), "location_dense_weight": (18, 3),
        "v_weight": (1, 18),
    }  # fmt: skip
    assert_refused(message, location_attention, **zeros_for_shapes(shapes | WRONG[message]))
