"""Types for the checker."""

from collections.abc import Iterable
from typing import TypeVar, cast

from torch import nn

Kind = TypeVar("Kind", bound=nn.Module)


def of_kind(kind: type[Kind], modules: Iterable[nn.Module]) -> list[Kind]:
    """The modules of an nn.ModuleList, whose type says nothing about them.

    Not checked when running: other code may replace a module by one of another class that has the same parameters.
    """
    return cast(list[Kind], list(modules))
