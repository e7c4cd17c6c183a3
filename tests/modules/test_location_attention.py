"""LocationAttention as a drop-in for the published Attention."""

import copy
import pickle
import sys

import pytest
import torch

from fastglow.kernels import backend
from fastglow.modules import LocationAttention

from ..kernels.checks import DEVICE, assert_refused, launch_counter


def inputs(dtype=torch.float32):
    """Arguments of a batch of 2 with 5 positions, the second item 3 long."""
    return (
        torch.randn(2, 3, dtype=dtype),
        torch.randn(2, 5, 4, dtype=dtype),
        torch.randn(2, 5, 7, dtype=dtype),
        torch.rand(2, 2, 5, dtype=dtype),
        torch.tensor([[False] * 5, [False] * 3 + [True] * 2]),
    )


def module(**options):
    return LocationAttention(3, 4, 7, 2, 5, **options)


def test_state_dict_has_the_published_keys():
    assert {key: tuple(value.shape) for key, value in module().state_dict().items()} == {
        "query_layer.linear_layer.weight": (7, 3),
        "memory_layer.linear_layer.weight": (7, 4),
        "v.linear_layer.weight": (1, 7),
        "location_layer.location_conv.conv.weight": (2, 2, 5),
        "location_layer.location_dense.linear_layer.weight": (7, 2),
    }


def test_a_bias_has_coquis_key():
    added = module(v_bias=True).state_dict().keys() - module().state_dict().keys()
    assert added == {"v.linear_layer.bias"}


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


@pytest.mark.parametrize("normalization", ["softmax", "sigmoid"])
def test_options_composed_of_its_layers(normalization):
    attention = module(v_bias=True, sharpening=2.0, normalization=normalization)
    torch.nn.init.constant_(attention.v.linear_layer.bias, 0.7)
    query, memory, processed_memory, weights_cat, mask = inputs()
    location = attention.location_layer.location_dense(
        attention.location_layer.location_conv(weights_cat).transpose(1, 2)
    )
    hidden = torch.tanh(attention.query_layer(query.unsqueeze(1)) + location + processed_memory)
    energies = (2.0 * attention.v(hidden).squeeze(2)).masked_fill(mask, -torch.inf)
    sigmoids = torch.sigmoid(energies)
    expected = (
        torch.softmax(energies, dim=1) if normalization == "softmax" else sigmoids / sigmoids.sum(1, keepdim=True)
    )
    for padding in ({"mask": mask}, {"lengths": torch.tensor([5, 3])}):
        context, weights = attention(query, memory, processed_memory, weights_cat, **padding)
        torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(context, (expected.unsqueeze(2) * memory).sum(dim=1), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"attention_location_kernel_size": 4}, "attention_location_kernel_size=4 must be odd"),
        ({"normalization": "entmax"}, "normalization=.entmax. must be"),
    ],
)
def test_errors(arguments, message):
    sizes = {"attention_rnn_dim": 3, "embedding_dim": 4, "attention_dim": 7, "attention_location_n_filters": 2}
    assert_refused(message, LocationAttention, **{**sizes, "attention_location_kernel_size": 5, **arguments})


def on_kernels(attention, arguments):
    launches = launch_counter()
    with backend.use_backend("triton"):
        outputs = attention(*arguments)
    assert launches() > 0
    return outputs


def test_runs_on_the_kernels():
    attention = module().to(DEVICE)
    arguments = [x.to(DEVICE) for x in inputs()]
    with backend.use_backend("reference"):
        expected = attention(*arguments)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for x, y in zip(on_kernels(attention, arguments), expected, strict=True):
                torch.testing.assert_close(x, y, atol=1e-6, rtol=0)


def test_inference_follows_the_parameters():
    attention = module().to(DEVICE)
    arguments = [x.to(DEVICE) for x in inputs()]
    weights = [
        attention.location_layer.location_conv.conv.weight,
        attention.location_layer.location_dense.linear_layer.weight,
    ]
    for weight in weights:
        with torch.no_grad():
            before = on_kernels(attention, arguments)
            weight.mul_(-3.0)
            after = on_kernels(attention, arguments)
            with backend.use_backend("reference"):
                expected = attention(*arguments)
        assert not torch.equal(after[1], before[1])
        for x, y in zip(after, expected, strict=True):
            torch.testing.assert_close(x, y, atol=1e-6, rtol=0)


def test_inference_folds_once(monkeypatch):
    attention, arguments = module(), inputs()
    folded = []
    home = sys.modules[LocationAttention.__module__]
    fold = home.fold_location
    monkeypatch.setattr(home, "fold_location", lambda *x: folded.append(x) or fold(*x))
    with torch.no_grad():
        for _ in range(3):
            attention(*arguments)
    assert len(folded) == 1
