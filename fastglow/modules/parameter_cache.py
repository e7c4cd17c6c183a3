"""Values computed from parameters and kept until the parameters change."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor

Value = TypeVar("Value")


class ParameterCache(Generic[Value]):
    """One value, computed again when a parameter was written to, moved, cast or replaced.

    It belongs to one module: copies and pickles of the module start with an empty one. Not for training: the value
    carries no gradient to the parameters.
    """

    def __init__(self) -> None:
        self._key: Hashable = None
        self._value: Value | None = None
        # While these live, no other weights can come to lie at the addresses of the key.
        self._storages: tuple[Tensor, ...] = ()

    def get(self, parameters: Sequence[Tensor], build: Callable[[], Value], *settings: Hashable) -> Value:
        """`build()`, or what it returned last time for these parameters as they are now and these settings."""
        if any(parameter.is_inference() for parameter in parameters):
            return build()  # such tensors do not count their changes
        key = (tuple((x.data_ptr(), x._version, x.dtype, x.device) for x in parameters), settings)
        if key != self._key:
            self._value = build()
            self._key = key
            self._storages = tuple(x.detach() for x in parameters)
        return self._value

    def __deepcopy__(self, memo: Any) -> "ParameterCache[Value]":
        return ParameterCache()

    def __reduce__(self) -> tuple:
        return ParameterCache, ()
