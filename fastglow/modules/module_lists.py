"""Type information for nn.ModuleList."""

from collections.abc import Iterable
from typing import TypeVar, cast

from torch import nn

Kind = TypeVar("Kind", bound=nn.Module)


def modules_of_type(kind: type[Kind], modules: Iterable[nn.Module]) -> list[Kind]:
    """The modules of an nn.ModuleList, typed as `kind` for the type checker.

    Not checked at run time: other code may replace a module by one of another class that has the same parameters.
    """
    return cast(list[Kind], list(modules))
