"""What fastglow knows about a kind of foreign module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

Method = Callable[..., Any]
"""`method(module, original, *args, **kw)`: a method of the module on fastglow's kernels. `original(*args, **kw)` is the
method that it replaces, for calls that the kernels do not support."""

Call = Callable[[Any], Any]
"""A small call of a module's own methods, whose result shows how the module computes."""


def _nothing(module: nn.Module) -> None:
    return None


@dataclass(frozen=True)
class Adapter:
    """
    Attributes:
        name: of the adapter, unique; pickles of swapped modules have it.
        op: the operation of `fastglow.kernels` that does the work.
        kind: what the module is, for reports.
        claims: whether a module looks like this kind, by its class and the names of its parts.
        difference: what of a claimed module's structure the kernels do not support; None if nothing.
        variants: versions of the replaced methods, by name. The first one whose results equal the module's is used.
        calls: small calls, made on a float32 copy of the module on the CPU, that compare a variant with the module.
        prepare: called with that copy first: forgets what the module has cached.
        only_kernels: worth it by Triton kernels only: where those do not run, the module's own methods do, unless
            the reference is forced.
        draws_own_noise: the replaced methods draw random numbers of their own, so that they are swapped only when
            asked for.
    """

    name: str
    op: str
    kind: str
    claims: Callable[[nn.Module], bool]
    difference: Callable[[nn.Module], str | None]
    variants: Mapping[str, Mapping[str, Method]]
    calls: Callable[[nn.Module], Iterable[Call]]
    prepare: Callable[[Any], Any] = _nothing
    only_kernels: bool = False
    draws_own_noise: bool = False
