"""Hooks of a swapped module's parts, which the kernels would not call."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.weight_norm import WeightNorm


def is_weight_norm(hook: object) -> bool:
    """Whether a hook is torch.nn.utils.weight_norm's, which computes a weight from its parameters."""
    return isinstance(hook, WeightNorm)


def inner_hooks(module: nn.Module) -> bool:
    """Whether a part of the module, not the module itself, has a hook, or all modules have one."""
    if _has_any_global_hook():
        return True
    parts = list(module._modules.values())
    while parts:
        part = parts.pop()
        if part is None:
            continue
        if part._forward_hooks or part._backward_hooks or part._backward_pre_hooks:
            return True
        if part._forward_pre_hooks and not all(map(is_weight_norm, part._forward_pre_hooks.values())):
            return True
        parts.extend(part._modules.values())
    return False
