"""Modules that compute with other tensors than their parameters for a while."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import Any, NamedTuple

from torch import Tensor, nn


class Slot(NamedTuple):
    """Where a module has a parameter."""

    owner: dict[str, Any]
    name: str

    @property
    def tensor(self) -> Tensor:
        return self.owner[self.name]


def slots_of(module: nn.Module) -> list[Slot]:
    """Of all parameters of a module. Replicas of DataParallel have theirs as attributes."""
    found = []
    for one in module.modules():
        found += [Slot(one._parameters, name) for name, tensor in one._parameters.items() if tensor is not None]
        found += [Slot(one.__dict__, name) for name in getattr(one, "_former_parameters", ())]
    return found


in_their_places = RLock()
"""While a thread holds it, no other one's tensors are where the parameters of a module belong."""


@contextmanager
def holding(slots: Sequence[Slot], tensors: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the modules compute with these tensors.

    Gradients of the parameters themselves would run their hooks inside a backward pass, and once more outside.
    """
    with in_their_places:
        before = [slot.tensor for slot in slots]
        try:
            for slot, tensor in zip(slots, tensors, strict=True):
                slot.owner[slot.name] = tensor
            yield
        finally:
            for slot, tensor in zip(slots, before, strict=True):
                slot.owner[slot.name] = tensor
