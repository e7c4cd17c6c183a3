"""Memory whose uninitialised parts are poisoned, and which remembers what is allocated."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastglow.kernels.operators import run_inside

UNINITIALISED = {"aten::" + name for name in ("empty", "empty_like", "empty_permuted", "empty_strided")} | {
    "aten::new_empty",
    "aten::new_empty_strided",
}

GUARD = 64
"""Poisoned elements on either side of a placed tensor: more than any kernel's tile is wide here."""


class Poison(NamedTuple):
    """What memory holds that nobody has written."""

    name: str
    number: float  # of floating-point memory, in units of the dtype's largest number
    byte: int  # of each byte of other memory

    def fill(self, x: Tensor) -> None:
        if not x.numel():
            return
        if x.is_floating_point():
            x.fill_(self.number * torch.finfo(x.dtype).max)
        elif x.dtype == torch.bool:
            x.fill_(bool(self.byte & 1))
        else:
            x.fill_(int.from_bytes([self.byte] * x.itemsize, "little", signed=x.dtype.is_signed))


NAN = Poison("NaN", float("nan"), 0x5A)
HUGE = Poison("huge", 0.5, 0xA5)


class Memory(TorchDispatchMode):
    """Inside, every operation that allocates without writing, under any of its names, gets poisoned memory."""

    def __init__(self, poison: Poison) -> None:
        super().__init__()
        self.poison = poison
        self._storages: dict[int, tuple[int, StorageWeakRef]] = {}  # address -> (bytes, whether it still exists)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = run_inside(self, func, args, kwargs or {})
        if func._schema.name in UNINITIALISED:
            self.poison.fill(result)
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self._remember(x)
        return result

    def place(self, x: Tensor, spread: bool) -> Tensor:
        """The same values, poison on either side of them.

        Args:
            spread: the dimensions are in reverse order in memory, with a poisoned element after each element.
        """
        step = 2 if spread else 1
        order = range(x.dim()) if spread else reversed(range(x.dim()))
        strides, stride = [0] * x.dim(), step
        for dim in order:
            strides[dim] = stride
            stride *= x.shape[dim]
        whole = torch.empty(2 * GUARD + step * x.numel(), dtype=x.dtype)
        placed = whole.as_strided(x.shape, strides, GUARD)
        placed.copy_(x)
        return placed

    def extent(self, address: int) -> tuple[int, int] | None:
        """The first byte and the end of the living storage that holds an address."""
        for start, (size, reference) in self._storages.items():
            if start <= address < start + size and not reference.expired():
                return start, start + size
        return None

    def _remember(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        size, address = storage.nbytes(), storage.data_ptr()
        known = self._storages.get(address)
        if size and (known is None or known[0] != size or known[1].expired()):
            self._storages[address] = size, StorageWeakRef(storage)
