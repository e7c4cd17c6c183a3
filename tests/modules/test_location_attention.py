"""LocationAttention as a drop-in for the published Attention."""

import copy
import pickle

import torch

from fastglow.modules import LocationAttention


def inputs(dtype=torch.float32):
    """Arguments of a batch of 2 with 5 positions, the second item 3 long."""
    return (
        torch.randn(2, 3, dtype=dtype),
        torch.randn(2, 5, 4, dtype=dtype),
        torch.randn(2, 5, 7, dtype=dtype),
        torch.rand(2, 2, 5, dtype=dtype),
        torch.tensor([[False] * 5, [False] * 3 + [True] * 2]),
    )


def module():
    return LocationAttention(3, 4, 7, 2, 5)


def test_state_dict_has_the_published_keys():
    assert {key: tuple(value.shape) for key, value in module().state_dict().items()} == {
        "query_layer.linear_layer.weight": (7, 3),
        "memory_layer.linear_layer.weight": (7, 4),
        "v.linear_layer.weight": (1, 7),
        "location_layer.location_conv.conv.weight": (2, 2, 5),
        "location_layer.location_dense.linear_layer.weight": (7, 2),
    }


def test_composed_of_its_layers():
    """As the published code computes it, layer by layer."""
    attention = module()
    query, memory, processed_memory, weights_cat, mask = inputs()
    location = attention.location_layer.location_dense(
        attention.location_layer.location_conv(weights_cat).transpose(1, 2)
    )
    hidden = torch.tanh(attention.query_layer(query.unsqueeze(1)) + location + processed_memory)
    for given in (mask, None):
        energies = attention.v(hidden).squeeze(2)
        if given is not None:
            energies[given] = -torch.inf
        expected = torch.softmax(energies, dim=1)
        context, weights = attention(query, memory, processed_memory, weights_cat, given)
        torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(context, (expected.unsqueeze(2) * memory).sum(dim=1), atol=1e-6, rtol=0)


def test_copies():
    attention, arguments = module(), inputs()
    for twin in (copy.deepcopy(attention), pickle.loads(pickle.dumps(attention))):
        assert torch.equal(twin(*arguments)[0], attention(*arguments)[0])
    context, weights = attention.half()(*inputs(torch.float16))
    assert context.dtype == weights.dtype == torch.float16
    assert "location_dense" in repr(attention)
