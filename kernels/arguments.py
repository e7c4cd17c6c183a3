"""Arguments of the operations: checks, and the forms in which kernels take tensors and lengths."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastglow.errors import FastglowError

SMALLEST_DOT = 16
"""Smallest size of a `tl.dot`, in each dimension."""

LARGEST_TILE = 1024
"""Most rows of a tile."""


def dot_size(n: int) -> int:
    """Size of a `tl.dot` that covers n elements in one tile: a power of 2."""
    return max(SMALLEST_DOT, triton.next_power_of_2(n))


class Signal(NamedTuple):
    """A [B, C, T] tensor for a kernel."""

    p: Any
    s_b: Any
    s_c: Any
    s_t: Any

    @classmethod
    def of(cls, x: Tensor | None) -> "Signal | None":
        return None if x is None else cls(x, *x.stride())


class Matrix(NamedTuple):
    """A matrix for a kernel."""

    p: Any
    s_row: Any
    s_column: Any

    @classmethod
    def of(cls, x: Tensor) -> "Matrix":
        return cls(x, *x.stride())


@triton.jit
def item_length(p_lengths, i_b, T, HAS_LENGTHS: tl.constexpr):
    """The length of item i_b, between 0 and T; T without lengths."""
    if HAS_LENGTHS:
        return tl.minimum(tl.maximum(tl.load(p_lengths + i_b).to(tl.int32), 0), T)
    return T


def dtype_name(dtype: torch.dtype) -> str:
    """'float32' of torch.float32."""
    return str(dtype).removeprefix("torch.")


def check_shape(
    name: str, x: Tensor | None, expected: tuple[int | str, ...], *, beside: tuple[str, Tensor] | None = None
) -> None:
    """
    Args:
        name: of the argument.
        x: None, an absent argument, passes.
        expected: integers must match; a string names a dimension of any size.
        beside: name and value of the argument that fixes the sizes.

    Raises:
        FastglowError: another shape.
    """
    if x is None or x.shape == expected:
        return
    shape = tuple(x.shape)
    fits = len(shape) == len(expected) and all(
        isinstance(size, str) or size == actual for size, actual in zip(expected, shape, strict=True)
    )
    if not fits:
        because = "" if beside is None else f" beside {beside[0]} {list(beside[1].shape)}"
        raise FastglowError(f"{name} has shape {list(shape)}, must be [{', '.join(map(str, expected))}]{because}")


def check_at_least(name: str, value: int, smallest: int) -> None:
    """Raises FastglowError for a smaller value."""
    if value < smallest:
        raise FastglowError(f"{name}={value} must be at least {smallest}")


def sizes_of_pieces(name: str, sizes: int | Iterable[int]) -> Iterator[int]:
    """The size of every piece, without end: the last of the given ones repeats.

    Raises:
        FastglowError: a size is below 1, or there are none; `name` is that of the argument.
    """
    size: int | None = None
    for size in (sizes,) if isinstance(sizes, int) else sizes:
        check_at_least(name, size, 1)
        yield size
    if size is None:
        raise FastglowError(f"{name} is empty, must have at least one size")
    yield from repeat(size)


def check_choice(name: str, value: str | None, choices: Collection[str | None]) -> None:
    """Raises FastglowError unless the value is among the choices."""
    if value not in choices:
        *others, last = map(repr, choices)
        raise FastglowError(f"{name}={value!r} must be {', '.join(others)} or {last}")


def check_probability(name: str, p: float, *, allow_one: bool = False) -> None:
    """Raises FastglowError unless 0 <= p < 1 (a dropout that keeps nothing has no scale), or <= 1 with `allow_one`."""
    if allow_one and not 0 <= p <= 1:
        raise FastglowError(f"{name}={p} must be between 0 and 1")
    if not allow_one and not 0 <= p < 1:
        raise FastglowError(f"{name}={p} must be at least 0 and below 1")


def check_seed(seed: int | Tensor | None, device: torch.device) -> None:
    """Raises FastglowError unless the seed is absent, an integer of 64 bits, or a 0-d int64 tensor on the device."""
    if isinstance(seed, Tensor):
        if seed.dim() or seed.dtype != torch.int64 or seed.device != device:
            raise FastglowError(
                f"seed has dtype {dtype_name(seed.dtype)}, shape {list(seed.shape)}, device {seed.device}: pass an "
                f"integer, or a 0-d int64 tensor on {device}"
            )
    elif seed is not None and not -(2**63) <= seed < 2**63:
        raise FastglowError(f"seed={seed} does not fit in 64 bits: use a smaller one")


def operator_seed(seed: int | Tensor) -> tuple[int, Tensor | None]:
    """(integer, or 0 and not read; tensor or None), as operators take a seed."""
    return (0, seed) if isinstance(seed, Tensor) else (seed, None)


def check_seeds(seeds: Tensor, batch: int) -> None:
    """Raises FastglowError unless seeds are int64 [batch]."""
    if seeds.dtype != torch.int64:
        raise FastglowError(f"seeds have dtype {dtype_name(seeds.dtype)}, must be int64")
    check_shape("seeds", seeds, (batch,))


def check_integers(name: str, x: Tensor) -> None:
    """Raises FastglowError unless the dtype is an integer one."""
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise FastglowError(f"{name} has dtype {dtype_name(x.dtype)}, must be an integer dtype")


def check_floats(**tensors: Tensor | None) -> None:
    """Raises FastglowError unless the tensors, by argument, have floating-point dtypes; absent ones are None."""
    for name, x in tensors.items():
        if x is not None and not x.is_floating_point():
            raise FastglowError(f"{name} has dtype {dtype_name(x.dtype)}, must be a floating-point dtype")


def check_one_dtype(**tensors: Tensor | None) -> None:
    """Raises FastglowError unless the tensors, by argument, have one floating-point dtype; absent ones are None."""
    check_floats(**tensors)
    (first, x), *others = ((name, x) for name, x in tensors.items() if x is not None)
    for name, other in others:
        if other.dtype != x.dtype:
            raise FastglowError(
                f"{first} has dtype {dtype_name(x.dtype)} and {name} {dtype_name(other.dtype)}: cast one, or use "
                "autocast"
            )


def mixed_dtypes(*tensors: Tensor | None) -> str | None:
    """`unsupported` of `backend.picks_triton` for kernels that take one dtype; absent tensors are None."""
    dtypes = sorted({dtype_name(x.dtype) for x in tensors if x is not None})
    return f"its tensors have the dtypes {', '.join(dtypes)}" if len(dtypes) > 1 else None


def strides(x: Tensor | None, *dims: int) -> tuple[int, ...]:
    """Strides of these dimensions, by default all; zeros for an absent tensor, which needs the dimensions named."""
    if x is None:
        return (0,) * len(dims)
    return tuple(x.stride(d) for d in dims) if dims else tuple(x.stride())


def contiguous_rows(x: Tensor) -> Tensor:
    """x, or a copy if the elements of its rows are not contiguous; rows may be any distance apart."""
    return x if x.stride(1) == 1 else x.contiguous()


def too_many_elements(what: str, elements: int) -> str | None:
    """`unsupported` of `backend.picks_triton` for a buffer in which a kernel's offsets have 32 bits."""
    return f"{what} have {elements} elements, must be below 2^31: split the batch" if elements >= 2**31 else None


def with_near_rows(x: Tensor) -> Tensor:
    """x, or a copy if the rows of a tile, in the last two dimensions, are so far apart that offsets exceed 32 bits."""
    offset = min(x.shape[-2], LARGEST_TILE) * x.stride(-2) + x.shape[-1] * x.stride(-1)
    return x if offset < 2**31 else x.contiguous()


def empty_in_order_of(x: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised [B, C, T] tensor on the device of x, channels-last in memory where x is."""
    if x.stride(1) <= x.stride(2):
        # Not the transpose of another tensor: autograd lets nobody change a view in place that an operator returned.
        B, C, T = shape
        return x.new_empty_strided((B, C, T), (C * T, 1, C), dtype=dtype)
    return x.new_empty(shape, dtype=dtype)
