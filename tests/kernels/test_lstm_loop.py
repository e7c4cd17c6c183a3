"""LSTMLoop and its deferred weight gradients against a chain of nn.LSTMCell, in float64."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from fastglow.kernels import LSTMLoop

BATCH, N_IN, N, STEPS = 3, 5, 7, 4
# Steps whose h, and whose c, have an upstream gradient.
UPSTREAM = {
    "all": (range(STEPS), range(STEPS)),
    "h of all": (range(STEPS), ()),
    "c of all": ((), range(STEPS)),
    "last h": ((STEPS - 1,), ()),
    "last c": ((), (STEPS - 1,)),
    "h in the middle": ((1,), ()),
    "first c, third h": ((2,), (0,)),
}


@pytest.fixture
def cell():
    return nn.LSTMCell(N_IN, N, dtype=torch.float64)


@pytest.fixture
def inputs(leaf):
    """x of every step, h, c."""
    return [*(leaf(BATCH, N_IN) for _ in range(STEPS)), leaf(BATCH, N), leaf(BATCH, N)]


def loop_of(cell):
    return LSTMLoop(cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)


def run(step, inputs):
    """(h, c) after every step."""
    *xs, h, c = inputs
    outputs = []
    for x in xs:
        h, c = step(x, (h, c))
        outputs.append((h, c))
    return outputs


def gradients(loss, tensors, **kw):
    return torch.autograd.grad(loss, tensors, allow_unused=True, **kw)


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def weighted(outputs, coefficients, h_steps=range(STEPS), c_steps=range(STEPS)):
    """Sum of the outputs times random numbers, those of the given steps."""
    terms = [(coefficients[t, 0] * outputs[t][0]).sum() for t in h_steps]
    return sum(terms + [(coefficients[t, 1] * outputs[t][1]).sum() for t in c_steps])


@pytest.fixture
def coefficients():
    return torch.randn(STEPS, 2, BATCH, N, dtype=torch.float64)


@pytest.mark.parametrize("upstream", UPSTREAM)
def test_forward_and_every_gradient(cell, inputs, coefficients, upstream):
    expected, actual = run(cell, inputs), run(loop_of(cell), inputs)
    for step in range(STEPS):
        assert_same(actual[step], expected[step])
    tensors = [*cell.parameters(), *inputs]
    expected = gradients(weighted(expected, coefficients, *UPSTREAM[upstream]), tensors)
    actual = gradients(weighted(actual, coefficients, *UPSTREAM[upstream]), tensors)
    if upstream == "h in the middle":  # autograd has no gradient for x that comes later
        assert actual[6:8] == (None, None)
    assert_same(actual, expected)


def test_gradcheck(cell, leaf):
    def function(weight_ih, weight_hh, bias_ih, bias_hh, x0, x1, h, c):
        (h0, _), (h1, c1) = run(LSTMLoop(weight_ih, weight_hh, bias_ih, bias_hh), (x0, x1, h, c))
        return h0, h1, c1

    n = 3
    weights = leaf(4 * n, 2), leaf(4 * n, n), leaf(4 * n), leaf(4 * n)
    assert gradcheck(function, (*weights, leaf(1, 2), leaf(1, 2), leaf(1, n), leaf(1, n)))


def test_two_loops_in_a_row_add_their_gradients(cell, inputs, coefficients):
    for _ in range(2):
        weighted(run(loop_of(cell), inputs), coefficients).backward()
    once = gradients(weighted(run(cell, inputs), coefficients), list(cell.parameters()))
    assert_same([p.grad for p in cell.parameters()], [2 * gradient for gradient in once])


def test_one_loop_used_and_differentiated_twice(cell, inputs, coefficients):
    loop = loop_of(cell)
    once = gradients(weighted(run(cell, inputs), coefficients), list(cell.parameters()))
    for _ in range(2):
        outputs = run(loop, inputs)
        assert_same(gradients(weighted(outputs, coefficients), list(cell.parameters()), retain_graph=True), once)


def test_a_graph_differentiated_twice(cell, inputs, coefficients):
    outputs = run(loop_of(cell), inputs)
    tensors = [*cell.parameters(), *inputs]
    first, second = (gradients(weighted(outputs, coefficients), tensors, retain_graph=True) for _ in range(2))
    assert_same(second, first)


def test_gradients_of_inputs_alone_leave_nothing_behind(cell, inputs, coefficients):
    outputs = run(loop_of(cell), inputs)
    parameters = list(cell.parameters())
    whole = gradients(weighted(outputs, coefficients), inputs, retain_graph=True)
    assert_same(whole, gradients(weighted(run(cell, inputs), coefficients), inputs))
    actual = gradients(weighted(outputs, coefficients, (1,), ()), parameters)
    assert_same(actual, gradients(weighted(run(cell, inputs), coefficients, (1,), ()), parameters))


def test_no_output_has_a_gradient(cell, inputs):
    outputs = run(loop_of(cell), inputs)
    loss = sum(x.sum() for x in inputs) + 0 * sum(h.detach().sum() for h, _ in outputs)
    loss.backward()
    assert all(p.grad is None for p in cell.parameters())


def test_a_loop_without_steps(cell):
    loop_of(cell)
    assert all(p.grad is None for p in cell.parameters())


def test_a_state_that_is_set_back(cell, inputs, coefficients):
    """The steps hang together through the weights only."""
    *xs, h, c = inputs
    tensors = [*cell.parameters(), *inputs]
    expected, actual = (
        gradients(weighted([step(x, (h, c)) for x in xs], coefficients, (0, 3), (1,)), tensors)
        for step in (cell, loop_of(cell))
    )
    assert_same(actual, expected)


def test_two_loops_that_feed_each_other(inputs, coefficients):
    """As in Tacotron 2's decoder: a second cell reads the first one's output and gives the next input."""
    first, second = nn.LSTMCell(N_IN + N, N).double(), nn.LSTMCell(N, N).double()

    def outputs(step1, step2):
        *xs, h, c = inputs
        h2, c2, found = c, h, []
        for x in xs:
            h, c = step1(torch.cat((x, h2), dim=1), (h, c))
            h = 0.9 * h.tanh()
            h2, c2 = step2(h, (h2, c2))
            found.append((h2, c2))
        return weighted(found, coefficients)

    tensors = [*first.parameters(), *second.parameters(), *inputs]
    expected = gradients(outputs(first, second), tensors)
    assert_same(gradients(outputs(loop_of(first), loop_of(second)), tensors), expected)


def test_a_step_without_gradients_in_between(cell, inputs, coefficients):
    def outputs(step):
        *xs, h, c = inputs
        found = []
        for t, x in enumerate(xs):
            with torch.set_grad_enabled(t != 1):
                h, c = step(x, (h, c))
            found.append((h, c))
        return weighted(found, coefficients)

    parameters = list(cell.parameters())
    assert_same(gradients(outputs(loop_of(cell)), parameters), gradients(outputs(cell), parameters))


@pytest.mark.parametrize("frozen", ["weights", "inputs"])
def test_what_needs_no_gradient_gets_none(cell, inputs, coefficients, frozen):
    tensors = list(cell.parameters())
    if frozen == "weights":
        cell.requires_grad_(False)
        tensors = inputs
    else:
        inputs = [x.detach() for x in inputs]
    expected = gradients(weighted(run(cell, inputs), coefficients), tensors)
    assert_same(gradients(weighted(run(loop_of(cell), inputs), coefficients), tensors), expected)


def test_without_gradients(cell, inputs):
    with torch.no_grad():
        for actual, expected in zip(run(loop_of(cell), inputs), run(cell, inputs), strict=True):
            assert_same(actual, expected)
            assert not actual[0].requires_grad


def test_float32(inputs, coefficients):
    cell = nn.LSTMCell(N_IN, N)
    outputs = run(loop_of(cell), [x.detach().float() for x in inputs])
    actual = gradients(weighted(outputs, coefficients.float()), list(cell.parameters()))
    exact = cell.double()
    expected = gradients(weighted(run(exact, inputs), coefficients), list(exact.parameters()))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), b, atol=2e-5, rtol=0)
