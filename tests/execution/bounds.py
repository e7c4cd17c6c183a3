"""Finds accesses outside the tensors that a kernel was given: what compute-sanitizer's memcheck finds on a GPU."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .memory import Memory
from .programs import Grid, Observer, Program

Runs = np.ndarray
"""[n, 2] addresses: the first byte and the end of each run of bytes."""

NOWHERE: Runs = np.zeros((1, 2), np.uint64)


class OutOfBoundsError(AssertionError):
    """An access outside the tensors of its launch."""


class Bounds(Observer):
    """Allows the elements of the tensors among a launch's arguments, and the storages whose addresses they hold."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._kernel, self._program = "", (0, 0, 0)
        self._runs = NOWHERE

    def launched(self, kernel: str, grid: Grid) -> None:
        self._kernel = kernel

    def called(self, arguments: Mapping[str, Any]) -> None:
        tensors = list(_tensors(arguments.values()))
        tables = [x for x in tensors if x.dtype == torch.int64]
        held = {self._memory.extent(address) for x in tables for address in x.flatten().tolist()}
        storages = [np.array([extent], np.uint64) for extent in held if extent is not None]
        self._runs = _merged(np.concatenate([NOWHERE, *map(_runs, tensors), *storages]))

    def started(self, program: Program) -> None:
        self._program = program

    def loaded(self, addresses: np.ndarray, itemsize: int) -> None:
        self._check("reads", addresses, itemsize)

    def stored(self, addresses: np.ndarray, itemsize: int) -> None:
        self._check("writes", addresses, itemsize)

    def exchanged(self, addresses: np.ndarray, itemsize: int, sem: str) -> None:
        self._check("exchanges", addresses, itemsize)

    def _check(self, does: str, addresses: np.ndarray, itemsize: int) -> None:
        i_run = np.searchsorted(self._runs[:, 0], addresses, side="right") - 1
        ends = self._runs[i_run, 1]
        outside = addresses + np.uint64(itemsize) > ends
        if outside.any():
            behind = (int(addresses[outside][0]) - int(ends[outside][0])) // itemsize
            raise OutOfBoundsError(
                f"{self._kernel}: program {self._program} {does} {outside.sum()} elements outside its tensors, the "
                f"first {behind} elements behind the end of the last one before it"
            )


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from _tensors(value)


def _runs(x: Tensor) -> Runs:
    """The bytes of a tensor's elements."""
    if x.is_contiguous():
        offsets, size = np.zeros(min(1, x.numel()), np.int64), x.numel() * x.itemsize
    else:
        offsets, size = np.zeros(min(1, x.numel()), np.int64), x.itemsize
        for n, stride in zip(x.shape, x.stride(), strict=True):
            offsets = np.unique(offsets[:, None] + np.arange(n) * stride)
    first = (x.data_ptr() + offsets * x.itemsize).astype(np.uint64)
    return _merged(np.stack([first, first + np.uint64(size)], axis=1))


def _merged(runs: Runs) -> Runs:
    """Sorted, with runs that touch or overlap as one."""
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    ends = np.maximum.accumulate(runs[:, 1])
    begins = np.concatenate([np.ones(len(runs[:1]), bool), runs[1:, 0] > ends[:-1]])
    return np.stack([runs[begins, 0], ends[np.roll(begins, -1)]], axis=1)
