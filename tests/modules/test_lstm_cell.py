"""LSTMCell as a drop-in for nn.LSTMCell, and its dropouts and zoneouts."""

import copy
import pickle

import pytest
import torch
from torch import nn

from fastglow.modules import LSTMCell

from ..kernels.checks import assert_refused

BATCH, N_IN, N = 3, 5, 7


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def cells(request):
    """(ours, PyTorch's) with the same parameters, in float64."""
    plain = nn.LSTMCell(N_IN, N, bias=request.param).double()
    ours = LSTMCell(N_IN, N, bias=request.param).double()
    ours.load_state_dict(plain.state_dict())
    return ours, plain


@pytest.fixture
def inputs():
    return torch.randn(BATCH, N_IN).double(), (torch.randn(BATCH, N).double(), torch.randn(BATCH, N).double())


def assert_equal(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_state_dict_goes_both_ways(cells):
    ours, plain = cells
    assert list(ours.state_dict()) == list(plain.state_dict())
    for source, target in (cells, cells[::-1]):
        for parameter in source.parameters():
            nn.init.normal_(parameter)
        target.load_state_dict(source.state_dict(), strict=True)
        assert_equal(target.parameters(), source.parameters())
    assert isinstance(ours, nn.LSTMCell)


def test_starts_as_pytorchs():
    torch.manual_seed(1)
    plain = nn.LSTMCell(N_IN, N)
    torch.manual_seed(1)
    assert_equal(LSTMCell(N_IN, N).parameters(), plain.parameters())


def test_constructor_is_pytorchs():
    cell = LSTMCell(N_IN, N, False, "meta", torch.float16)
    assert cell.weight_ih.is_meta
    assert cell.weight_ih.dtype == torch.float16
    assert cell.bias_ih is None
    assert repr(cell) == repr(nn.LSTMCell(N_IN, N, False))


def test_repr_names_the_options():
    cell = LSTMCell(N_IN, N, p_dropout_h=0.1, p_zoneout_c=0.2)
    assert repr(cell) == "LSTMCell(5, 7, p_dropout_h=0.1, p_zoneout_c=0.2)"


def test_same_results_and_gradients(cells, inputs):
    (x, (h, c)), results = inputs, []
    for cell in cells:
        leaves = [t.clone().requires_grad_() for t in (x, h, c)]
        outputs = cell(leaves[0], (leaves[1], leaves[2]))
        loss = outputs[0].square().sum() + outputs[1].sin().sum()
        results.append((*outputs, *torch.autograd.grad(loss, [*leaves, *cell.parameters()])))
    assert_equal(*results)


def test_without_a_batch_and_without_a_state(cells, inputs):
    ours, plain = cells
    x, (h, c) = inputs
    for arguments in ((x,), (x, None), (x[0],), (x[0], (h[0], c[0])), (x[:0], (h[:0], c[:0])), (x, [h, c])):
        assert_equal(ours(*arguments), plain(*arguments))


def test_copies(cells, inputs):
    ours, _ = cells
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert_equal(twin(*inputs), ours(*inputs))
        assert twin.weight_ih.data_ptr() != ours.weight_ih.data_ptr()


def test_copies_keep_the_options():
    cell = LSTMCell(N_IN, N, p_dropout_c=0.3)
    for twin in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        assert twin.probabilities == cell.probabilities


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(cells, inputs, dtype):
    ours, plain = (cell.to(dtype) for cell in cells)
    x, (h, c) = inputs
    arguments = x.to(dtype), (h.to(dtype), c.to(dtype))
    assert_equal(ours(*arguments), plain(*arguments))
    assert ours(arguments[0])[0].dtype == dtype


def with_options(cell, **options):
    twin = LSTMCell(N_IN, N, cell.bias, dtype=torch.float64, **options)
    twin.load_state_dict(cell.state_dict())
    return twin


def test_dropout_in_training_only(cells, inputs):
    ours, plain = cells
    cell = with_options(ours, p_dropout_h=0.5, p_dropout_c=0.5)
    expected = plain(*inputs)
    assert_equal(cell.eval()(*inputs), expected)
    dropped = cell.train()(*inputs)
    for actual, full in zip(dropped, expected, strict=True):
        mask = actual == 0
        assert 0 < mask.sum() < mask.numel()
        torch.testing.assert_close(actual, torch.where(mask, 0, 2 * full))
    assert not torch.equal(dropped[0] == 0, dropped[1] == 0)
    assert not torch.equal(cell(*inputs)[0] == 0, dropped[0] == 0)  # a new mask at each step


def test_zoneout_as_espnets(cells, inputs):
    ours, plain = cells
    cell = with_options(ours, p_zoneout_h=0.25, p_zoneout_c=0.5)
    expected = plain(*inputs)
    for p, previous, new, actual in zip((0.25, 0.5), inputs[1], expected, cell.eval()(*inputs), strict=True):
        torch.testing.assert_close(actual, p * previous + (1 - p) * new)
    for previous, new, actual in zip(inputs[1], expected, cell.train()(*inputs), strict=True):
        kept = actual == previous
        assert 0 < kept.sum() < kept.numel()
        assert torch.equal(actual, torch.where(kept, previous, new))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([(2, 3, 5)], r"shapes \[2, 3, 5\], must be \[B, n\] each"),
        ([(3, 5), (7,), (7,)], r"shapes \[3, 5\], \[7\], \[7\], must be"),
        ([(3, 5), (3, 6), (3, 7)], r"c has shape \[3, 7\], must be \[3, 6\]"),
        ([(3, 6)], r"weight_ih has shape \[28, 5\], must be \[28, 6\]"),
    ],
)
def test_wrong_shapes(arguments, message):
    x, *state = (torch.zeros(shape) for shape in arguments)
    assert_refused(message, LSTMCell(N_IN, N), x, *([tuple(state)] if state else []))


@pytest.mark.parametrize("name", ["p_dropout_h", "p_dropout_c", "p_zoneout_h", "p_zoneout_c"])
@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_bad_probabilities_are_refused(name, p):
    assert_refused(f"{name}={p} must be at least 0 and below 1", LSTMCell, N_IN, N, **{name: p})


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_decoders_loop_on_a_gpu(dtype):
    ours = LSTMCell(768, 1024, device="cuda", dtype=dtype)
    plain = nn.LSTMCell(768, 1024, device="cuda", dtype=dtype)
    plain.load_state_dict(ours.state_dict())
    inputs = torch.randn(20, 4, 768, device="cuda", dtype=dtype)
    states = [None, None]
    for x in inputs:
        states = [cell(x, state) for cell, state in zip((ours, plain), states, strict=True)]
    for actual, expected in zip(*states, strict=True):
        torch.testing.assert_close(actual, expected, atol=5e-3 if dtype == torch.float16 else 1e-5, rtol=0)
