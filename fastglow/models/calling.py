"""How inference calls the parts of a model that compute without waiting for the device."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class Call(Protocol):
    """Calls functions of tensors, perhaps as recorded CUDA graphs, which are made for few sizes."""

    def __call__(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """function(*inputs). The name of the function identifies it."""

    def padded(self, x: Tensor, *per_item: Tensor) -> tuple[Tensor, ...]:
        """The inputs of a call with zeros added, in items and positions: x [B, ..., T] and tensors [B]."""


class DirectCall:
    """Calls functions as they are."""

    def __call__(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        return function(*inputs)

    def padded(self, x: Tensor, *per_item: Tensor) -> tuple[Tensor, ...]:
        return x, *per_item


DIRECT = DirectCall()
