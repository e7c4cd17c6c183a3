"""Parts of a swapped module that must be called: those with hooks, which the kernels would not call, and those that
other code has replaced or parametrized, whose weights mean something else."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

_PARAMETRIZATIONS = "parametrizations"
"""PyTorch's name for the part with them; `is_parametrized` would cost more at every call."""


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
        if _is_parametrized_otherwise(part):
            return True
        found.append(_class_of(part))
    return tuple(found) != classes


def what_hides_the_methods(module: nn.Module) -> str | None:
    """Why a swap of the module could not be compared: a copy of it without hooks would run its own code; or None."""
    if _has_any_global_hook():
        return "a hook of all modules is registered: remove that first"
    for name, part in module.named_modules():
        whose = f"{name}'s" if name else "its"
        if "forward" in part.__dict__:
            return f"{whose} forward is replaced on the instance: call accelerate before"
        if _is_parametrized_otherwise(part) or (part is module and _PARAMETRIZATIONS in part._modules):
            return f"{whose} parameters are parametrized: remove that first"
    return None


def _is_parametrized_otherwise(part: nn.Module) -> bool:
    """Whether it has parametrizations, or several of one parameter, that are not PyTorch's weight norm."""
    parametrizations = part._modules.get(_PARAMETRIZATIONS)
    if parametrizations is None:
        return False
    lists = [list(one._modules.values()) for one in parametrizations._modules.values() if one is not None]
    return any(len(one) != 1 or type(one[0]) is not _WeightNorm for one in lists)


def _class_of(part: nn.Module) -> type[nn.Module]:
    cls: type[nn.Module] = type(part).__bases__[0] if _PARAMETRIZATIONS in part._modules else type(part)
    return getattr(cls, "_fastglow_original", cls)


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """All parts but parametrizations, in one order."""
    parts = list(module._modules.values())
    while parts:
        part = parts.pop()
        if part is not None:
            yield part
            parts.extend(child for name, child in part._modules.items() if name != _PARAMETRIZATIONS)
