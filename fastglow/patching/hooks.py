"""Parts of a swapped module that must be called: those with hooks, which the kernels would not call, and those that
other code has replaced, whose weights mean something else."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.weight_norm import WeightNorm


def is_weight_norm(hook: object) -> bool:
    """Whether a hook is torch.nn.utils.weight_norm's, which computes a weight from its parameters."""
    return isinstance(hook, WeightNorm)


def part_classes(module: nn.Module) -> tuple[type[nn.Module], ...]:
    """The classes of all parts of a module, without parametrizations and swaps, which may come and go."""
    return tuple(_class_of(part) for part in _parts(module))


def must_call_parts(module: nn.Module, classes: tuple[type[nn.Module], ...]) -> bool:
    """Whether a part of the module, not the module itself, has a hook or a forward of its own, all modules have a hook,
    or the parts are not of these classes."""
    if _has_any_global_hook():
        return True
    found = []
    for part in _parts(module):
        if part._forward_hooks or part._backward_hooks or part._backward_pre_hooks or "forward" in part.__dict__:
            return True
        if part._forward_pre_hooks and not all(map(is_weight_norm, part._forward_pre_hooks.values())):
            return True
        found.append(_class_of(part))
    return tuple(found) != classes


def _class_of(part: nn.Module) -> type[nn.Module]:
    cls = type(part)
    return cls.__bases__[0] if is_parametrized(part) else getattr(cls, "_fastglow_original", cls)


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """All parts but parametrizations, in one order."""
    parts = list(module._modules.values())
    while parts:
        part = parts.pop()
        if part is not None:
            yield part
            parts.extend(child for name, child in part._modules.items() if name != "parametrizations")
