"""torch.nn.LSTMCell before and after."""

import pytest
import torch
from torch import nn

from fastglow import accelerate
from fastglow.kernels import backend

from .comparing import assert_close, assert_same_results, results


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("B, n_in, n", [(1, 3, 5), (4, 17, 16)])
def test_results_and_gradients(bias, B, n_in, n):
    torch.manual_seed(1)
    inputs = [torch.randn(B, n_in), torch.randn(B, n), torch.randn(B, n)]
    assert_same_results(nn.LSTMCell(n_in, n, bias), lambda cell, x, h, c: cell(x, (h, c)), inputs, "lstm_cell")


@pytest.mark.parametrize("call", [
    lambda cell, x, h, c: cell(x),
    lambda cell, x, h, c: cell(x[0]),
    lambda cell, x, h, c: cell(x[0], (h[0], c[0])),
    lambda cell, x, h, c: cell(x, hx=(h, c)),
    lambda cell, x, h, c: cell(input=x, hx=[h, c]),
])  # fmt: skip
def test_every_way_to_call_it(call):
    torch.manual_seed(2)
    assert_same_results(nn.LSTMCell(3, 5), call, [torch.randn(2, 3), torch.randn(2, 5), torch.randn(2, 5)], "lstm_cell")


@pytest.mark.parametrize("x, h", [((2, 4), (2, 5)), ((2, 3), (2, 6)), ((2, 3), (1, 5))])
def test_wrong_sizes_are_pytorchs_own_errors(x, h):
    cell = nn.LSTMCell(3, 5)
    accelerate(cell, strict=True)
    with pytest.raises(RuntimeError):
        cell(torch.randn(x), (torch.randn(h), torch.randn(h)))


def test_a_forward_of_its_own_is_left():
    class Peephole(nn.LSTMCell):
        def forward(self, input, hx=None):
            h, c = super().forward(input, hx)
            return h + c, c

    (entry,) = accelerate(nn.Sequential(Peephole(3, 5))).left
    assert entry.module == "0" and "Peephole has a forward of its own" in entry.text


def test_the_kernels_run():
    torch.manual_seed(3)
    cell, inputs = nn.LSTMCell(3, 16), [torch.randn(2, 3), torch.randn(2, 16), torch.randn(2, 16)]
    expected = results(cell, lambda cell, x, h, c: cell(x, (h, c)), inputs, True)
    accelerate(cell, strict=True)
    with backend.use_backend("triton"):
        before = backend.launches["lstm_cell"]
        found = results(cell, lambda cell, x, h, c: cell(x, (h, c)), inputs, True)
    assert backend.launches["lstm_cell"] > before
    assert_close(expected, found)


def test_on_a_cpu_the_cells_own_method_runs(monkeypatch):
    """The reference is the same operation with more around it."""
    cell, x = nn.LSTMCell(3, 5), torch.randn(2, 3)
    h = torch.zeros(2, 5)
    report = accelerate(cell, strict=True)
    assert "the module's own code" in report.entries[0].text
    monkeypatch.setattr("fastglow.kernels.lstm_cell", lambda *args: pytest.fail("the reference"))
    cell(x, (h, h))
