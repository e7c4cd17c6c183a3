"""Kernels with one fault each, and a sound one, called as functions of x [n]."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from .calls import Inputs
from .memory import Memory
from .order import Call, Results

# Sums that depend on the order: 2^24 + 1 is not a float32. Ascending gives 1, descending 2.
VALUES = (1.0, 2.0**24, -(2.0**24), 1.0, 0.5, 0.25, 0.125, 3.0)
N = len(VALUES)


@triton.jit
def double_kernel(p_x, p_y):
    i = tl.program_id(0)
    tl.store(p_y + i, 2 * tl.load(p_x + i))


@triton.jit
def running_sum_kernel(p_x, p_sum):
    tl.store(p_sum, tl.load(p_sum) + tl.load(p_x + tl.program_id(0)))


@triton.jit
def atomic_sum_kernel(p_x, p_sum):
    tl.atomic_add(p_sum, tl.load(p_x + tl.program_id(0)))


@triton.jit
def neighbour_kernel(p_x, p_y, p_z):
    """z_i needs y_{i-1}, which the program before writes."""
    i = tl.program_id(0)
    tl.store(p_y + i, tl.load(p_x + i))
    tl.store(p_z + i, tl.load(p_y + (i + tl.num_programs(0) - 1) % tl.num_programs(0)))


@triton.jit
def same_place_kernel(p_x, p_y):
    """All programs write one element."""
    tl.store(p_y, tl.load(p_x + tl.program_id(0)))


@triton.jit
def narrow_kernel(p_x, p_y, n):
    """The mask leaves the last element unwritten."""
    o = tl.program_id(0) * 4 + tl.arange(0, 4)
    tl.store(p_y + o, tl.load(p_x + o), mask=o < n - 1)


@triton.jit
def accumulating_kernel(p_x, p_y):
    """Adds to what it should overwrite."""
    i = tl.program_id(0)
    tl.store(p_y + i, tl.load(p_y + i) + tl.load(p_x + i))


@triton.jit
def long_kernel(p_x, p_y, n):
    """Reads the element behind the last one, and does not use it."""
    i = tl.program_id(0)
    b_next = tl.load(p_x + i + 1)
    tl.store(p_y + i, tl.where(i + 1 < n, b_next, 0.0))


@triton.jit
def early_kernel(p_x, p_y):
    """Writes the element before the first one."""
    i = tl.program_id(0)
    tl.store(p_y + i - 1, tl.load(p_x + i))


@triton.jit
def table_kernel(p_table, p_y):
    p_x = tl.load(p_table).to(tl.pointer_type(tl.float32))
    i = tl.program_id(0)
    tl.store(p_y + i, tl.load(p_x + i))


def call_of(function: Callable[[Tensor], tuple[Tensor, ...]], spread: bool = False) -> Call:
    def call(memory: Memory) -> Results:
        inputs = Inputs(memory, torch.float32, spread)
        return inputs.results(*function(inputs.place(torch.tensor(VALUES))))

    return call


def doubled(x: Tensor) -> tuple[Tensor, ...]:
    y = torch.empty_like(x)
    double_kernel[(N,)](x, y)
    return (y,)


def running_sum(x: Tensor) -> tuple[Tensor, ...]:
    total = x.new_zeros(1)
    running_sum_kernel[(N,)](x, total)
    return (total,)


def atomic_sum(x: Tensor) -> tuple[Tensor, ...]:
    total = x.new_zeros(1)
    atomic_sum_kernel[(N,)](x, total)
    return (total,)


def neighbour(x: Tensor) -> tuple[Tensor, ...]:
    y, z = torch.zeros_like(x), torch.empty_like(x)
    neighbour_kernel[(N,)](x, y, z)
    return y, z


def same_place(x: Tensor) -> tuple[Tensor, ...]:
    y = x.new_empty(1)
    same_place_kernel[(N,)](x, y)
    return (y,)


def unwritten(x: Tensor) -> tuple[Tensor, ...]:
    y = torch.empty_strided((N,), (1,))
    narrow_kernel[(N // 4,)](x, y, N)
    return (y,)


def unwritten_integers(x: Tensor) -> tuple[Tensor, ...]:
    y = x.new_empty_strided((N,), (1,), dtype=torch.int32)
    narrow_kernel[(N // 4,)](x.int(), y, N)
    return (y,)


def zeros_expected(x: Tensor) -> tuple[Tensor, ...]:
    y = torch.empty(N)
    accumulating_kernel[(N,)](x, y)
    return (y,)


def reads_behind(x: Tensor) -> tuple[Tensor, ...]:
    y = torch.empty_like(x)
    long_kernel[(N,)](x, y, N)
    return (y,)


def writes_before(x: Tensor) -> tuple[Tensor, ...]:
    y = torch.empty_like(x)
    early_kernel[(N,)](x, y)
    return (y,)


def overwrites_its_input(x: Tensor) -> tuple[Tensor, ...]:
    double_kernel[(N,)](x, x)
    return (x.clone(),)


def by_table(x: Tensor) -> tuple[Tensor, ...]:
    y, copy = torch.empty_like(x), x.clone()
    table_kernel[(N,)](torch.tensor([copy.data_ptr()]), y)
    return (y,)


def by_table_of_freed_memory(x: Tensor) -> tuple[Tensor, ...]:
    y, table = torch.empty_like(x), torch.tensor([x.clone().data_ptr()])
    table_kernel[(N,)](table, y)
    return (y,)
