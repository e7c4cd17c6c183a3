"""Location-sensitive attention against a NumPy loop and against the convolution it stands for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from fastglow.kernels import location_attention

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


def attention_of_one_item(query, memory, processed_memory, weights_cat, query_weight, conv, dense, v, length):
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
        weights[t] = np.exp(energy)
    weights /= weights.sum()
    return weights @ memory, weights


def test_against_a_loop(inputs, mask):
    contexts, weights = location_attention(*inputs, mask)
    assert contexts.shape == (BATCH, N_MEMORY)
    assert weights.shape == (BATCH, TIME)
    arrays = [x.detach().numpy() for x in inputs]
    for item in range(BATCH):
        length = TIME if mask is None else int(LENGTHS[item])
        context, expected = attention_of_one_item(*(x[item] for x in arrays[:4]), *arrays[4:], length)
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
