"""Tensors of any size that take only the memory of the pages that are written."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from triton.runtime import interpreter

_MAP_NORESERVE = 0x4000


def sparse(elements: int, dtype: torch.dtype) -> Tensor:
    """Zeros, [elements]. Never fill or copy it whole."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    return torch.frombuffer(mmap.mmap(-1, elements * dtype.itemsize, flags=flags), dtype=dtype)


def spread(x: Tensor, dim: int, stride: int) -> Tensor:
    """The same values, contiguous apart from this stride of one dimension."""
    others = x.movedim(dim, 0)
    strides = [stride, *torch.empty(others.shape, device="meta").stride()[1:]]
    span = (x.shape[dim] - 1) * stride + others[0].numel()
    y = sparse(span, x.dtype).as_strided(others.shape, strides)
    y.copy_(others)
    return y.movedim(0, dim)


@contextmanager
def in_place() -> Iterator[None]:
    """Inside, the interpreter does not copy the memory of CPU tensors back to where it is anyway."""
    restore = interpreter.GridExecutor._restore_args_dev
    interpreter.GridExecutor._restore_args_dev = lambda *arguments: None
    try:
        yield
    finally:
        interpreter.GridExecutor._restore_args_dev = restore
