"""Strides and offsets beyond 2^31 elements, on sparse memory: no 32-bit sum or product wraps, and results are right."""

import sys

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from fastglow.kernels import (
    affine_coupling,
    arguments,
    backend,
    gated_activation,
    invertible_conv1x1_inverse,
    location_attention,
)
from fastglow.kernels.launch import compile_only
from tests.kernels.checks import assert_refused

from .address_calls import CALLS, results
from .arithmetic import WrapError, checked_integers
from .programs import every_program, run_programs
from .sparse import in_place, sparse, spread

FITTING = 2**30 + 8  # in 32 bits, but not twice
LONG = 5 * 2**30

MOST_ROWS = 30
"""Larger tensors are weights, whose copies would be tested at length."""


def last_program(kernel, grid):
    return every_program(kernel, grid)[-1:] if grid[0] < 1000 else [(grid[0] - 1, grid[1] - 1, grid[2] - 1)]


@pytest.fixture(autouse=True)
def watched():
    with backend.use_backend("triton"), checked_integers(), in_place():
        yield


def spread_results(call, tensors, name: str, dim: int, stride: int):
    """The call's results with one tensor whose dimension has this stride; None where it is too short."""
    found = []

    def arrange(n, x):
        if n != name or x.dim() <= dim or not 3 <= x.shape[dim] <= MOST_ROWS:
            return x
        found.append(n)
        return spread(x.detach(), dim, stride)

    with run_programs():
        actual = results(call, tensors, arrange)
    return actual if found else None


@pytest.mark.parametrize("call", [call for call in CALLS if call.strides], ids=str)
def test_any_dimension_of_any_tensor_may_be_far_apart(call):
    tensors = call.tensors(torch.float32)
    with run_programs():
        expected = results(call, tensors)
    n_spread = 0
    for i, name in enumerate(call.names()):
        for dim in range(4):
            actual = spread_results(call, tensors, name, dim, (FITTING, LONG)[(i + dim) % 2])
            if actual is not None:
                n_spread += 1
                torch.testing.assert_close(actual, expected)
    assert n_spread >= 3


FEW = [call for call in CALLS if call.name in ("affine_coupling", "prenet")]


@pytest.mark.parametrize("call", FEW, ids=str)
def test_both_widths_of_every_stride(call):
    tensors = call.tensors(torch.float32)
    with run_programs():
        expected = results(call, tensors)
    for name in call.names():
        for dim in range(3):
            for stride in (FITTING, LONG):
                actual = spread_results(call, tensors, name, dim, stride)
                if actual is not None:
                    torch.testing.assert_close(actual, expected)


def test_elementwise_results_beyond_2_31_elements():
    """Only the last program runs, whose elements are the last ones."""
    B, n, T, near = 2, 3, 2**28 + 2**27 + 37, 30  # b and log s have 2^31.2 elements
    x, b_log_s = sparse(B * n * T, torch.float16).view(B, n, T), sparse(B * 2 * n * T, torch.float16).view(B, 2 * n, T)
    x[-1, :, -near:], b_log_s[-1, :, -near:] = torch.randn(n, near), torch.randn(2 * n, near) / 2
    inverse = torch.randn(2 * n, 2 * n)
    with run_programs(last_program):
        y, _ = affine_coupling(x, b_log_s)
        z = gated_activation(b_log_s)
        w = invertible_conv1x1_inverse(b_log_s, torch.empty(2 * n, 2 * n, 1), inverse)
    exact = [t[-1:, :, -near:].double() for t in (x, b_log_s)]
    with backend.use_backend("reference"):
        expected = [affine_coupling(*exact)[0], gated_activation(exact[1])]
    torch.testing.assert_close(y[-1:, :, -near:].double(), expected[0], rtol=2e-3, atol=2e-3)
    product = torch.einsum("ij,jt->it", inverse.half().double(), exact[1][0])
    torch.testing.assert_close(w[-1, :, -near:].double(), product, rtol=2e-3, atol=2e-3)
    # Without terms per channel, an item is one row: the last program has the end of the last channel.
    torch.testing.assert_close(z[-1:, -1:, -near:].double(), expected[1][:, -1:], rtol=2e-3, atol=2e-3)


def test_a_row_whose_last_tile_ends_beyond_2_31():
    """C and T are one row of 2^31 - 2 elements: its number plus a tile's does not fit in 32 bits."""
    a = sparse(2 * (2**31 - 2), torch.float16).view(1, 4, 2**30 - 1)
    values = torch.randn(2, 30).half()
    a[0, 1, -30:], a[0, 3, -30:] = values
    with run_programs(last_program):
        y = gated_activation(a)
    torch.testing.assert_close(y[0, 1, -30:], values[0].tanh() * values[1].sigmoid(), rtol=2e-3, atol=2e-3)


def test_buffers_with_32_bit_offsets_are_limited():
    assert arguments.too_many_elements("gates", 2**31 - 1) is None
    assert (
        arguments.too_many_elements("gates", 2**31)
        == "gates have 2147483648 elements, must be below 2^31: split the batch"
    )


@triton.jit
def _offsets_of_32_bits(x, i_b, o_c, o_t):
    return i_b.to(tl.int32) * x.s_b + o_c.to(tl.int32) * x.s_c + o_t.to(tl.int32) * x.s_t


@pytest.mark.parametrize("dim", range(3))
def test_a_planted_offset_of_32_bits_is_found(monkeypatch, dim):
    monkeypatch.setattr(sys.modules["fastglow.kernels.affine_coupling.kernels"], "_offsets", _offsets_of_32_bits)
    call = next(call for call in CALLS if call.name == "affine_coupling")
    with pytest.raises((WrapError, interpreter.InterpreterError), match=r"mul of \[2, 1073741832\]"):
        spread_results(call, call.tensors(torch.float32), "x", dim, FITTING)


@pytest.mark.parametrize("name, dim", [("x", 2), ("d0", 2)])
def test_without_the_copy_of_far_rows_a_wrap_is_found(monkeypatch, name, dim):
    monkeypatch.setattr(sys.modules["fastglow.kernels.prenet.kernels"], "with_near_rows", lambda x: x)
    call = next(call for call in CALLS if call.name == "prenet")
    with pytest.raises((WrapError, interpreter.InterpreterError), match="mul of"):
        spread_results(call, call.tensors(torch.float32), name, dim, FITTING)


@triton.jit
def _shifted_kernel(p, n, AMOUNT: tl.constexpr):
    tl.store(p, ((n << AMOUNT) + n) - (-n))


def test_the_interpreter_wraps_and_the_check_sees_it():
    out = torch.zeros(1, dtype=torch.int32)
    with run_programs():
        with pytest.raises(WrapError, match=r"shl of \[3, 30\]"):
            _shifted_kernel[(1,)](out, 3, 30)
        _shifted_kernel[(1,)](out, 3, 29 - 2)
    assert out.item() == (3 << 27) + 6


def test_an_error_of_one_line_for_a_batch_that_no_grid_holds():
    x = torch.zeros(1, 4, device="meta").expand(70_000, 4)
    memory = torch.zeros(1, 1, 4, device="meta").expand(70_000, 1, 4)
    zeros = lambda *shape: torch.zeros(shape, device="meta")  # noqa: E731
    with compile_only():
        assert_refused(
            "location_attention: location_attention_fwd_kernel would need 70000 programs in dimension y",
            location_attention,
            x, memory, memory, zeros(70_000, 2, 1), zeros(4, 4), zeros(3, 2, 5), zeros(4, 3), zeros(1, 4),
        )  # fmt: skip
