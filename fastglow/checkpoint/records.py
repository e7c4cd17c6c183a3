"""Inert records of the names, objects, storages and tensors in a pickle; reading a pickle creates these."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch

from fastglow.errors import FastglowError

MAX_DIMENSIONS = 8
MAX_ELEMENTS = 2**48

DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "Untyped": torch.uint8,
}
STORAGE_DTYPES = {
    f"{module}.{name}Storage": dtype
    for name, dtype in _STORAGES.items()
    for module in ("torch", "torch.cuda", "torch.storage")
}


def show(value: object, limit: int = 100) -> str:
    """`value` for a one-line message, whatever a file put into it."""
    text = value[: limit + 1] if isinstance(value, str) else reprlib.repr(value)
    text = text if text.isascii() and text.isprintable() else ascii(text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def damaged(what: str) -> FastglowError:
    return FastglowError(f"damaged or truncated file: {what}; download or copy it again")


def check_shape(shape: tuple[int, ...]) -> None:
    """Refuses shapes that torch cannot describe: negative sizes, or more elements than an index can count."""
    if len(shape) > MAX_DIMENSIONS or any(n < 0 for n in shape) or prod(max(n, 1) for n in shape) > MAX_ELEMENTS:
        raise damaged(f"a tensor has the impossible shape {show(shape)}")


class Global:
    """A name that the file mentions, `module.name`; it is never looked up."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


@dataclass(eq=False, repr=False)
class Inert:
    """An object that the file describes: its class's name and its state, nothing that runs."""

    class_name: str
    state: dict[Any, Any] = field(default_factory=dict)


@dataclass(eq=False, repr=False)
class Storage:
    """`nbytes` bytes at `offset` of the container's record `key`."""

    key: str
    dtype: torch.dtype
    nbytes: int
    offset: int = 0


@dataclass(eq=False, repr=False)
class PickledTensor:
    """A view of a storage; `offset` and `stride` in elements."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        check_shape(self.shape)
        if len(self.shape) != len(self.stride):
            raise damaged(f"a tensor of shape {show(self.shape)} has strides {show(self.stride)}")
        if self.offset < 0 or any(step < 0 for step in self.stride):
            raise damaged(f"a tensor of shape {show(self.shape)} has a negative offset or stride")
        # A dimension of size 1 may have any stride.
        self.stride = tuple(step if n > 1 else 1 for n, step in zip(self.shape, self.stride, strict=True))
        if self.span and (self.offset + self.span) * self.dtype.itemsize > self.storage.nbytes:
            raise damaged(f"a tensor of shape {show(self.shape)} reaches past its {self.storage.nbytes} bytes")

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def span(self) -> int:
        """Elements from the first to the last one, both included."""
        if not self.numel:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize
