"""The weights of foreign modules as they are used: after weight norm in any of PyTorch's forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from fastglow.modules.parameter_cache import ParameterCache, parameters_of

from .hooks import is_weight_norm
from .swapping import device_of, state_of

Value = TypeVar("Value")


def weight_of(module: nn.Module, name: str = "weight") -> Tensor:
    """A parameter; under torch.nn.utils.weight_norm, whose hook sets it before a call, computed now."""
    for hook in module._forward_pre_hooks.values():
        if is_weight_norm(hook) and hook.name == name:  # type: ignore[attr-defined]
            return hook.compute_weight(module)  # type: ignore[attr-defined]
    weight: Tensor = getattr(module, name)
    return weight


def weight_norm_of(module: Any) -> tuple[Tensor, Tensor]:
    """(v, g) with weight = g v / |v|, |v| over all but the first dimension: of weight norm, or of a weight without or
    over other dimensions."""
    if is_parametrized(module, "weight"):
        v, g = module.parametrizations.weight.original1, module.parametrizations.weight.original0
    else:
        v, g = getattr(module, "weight_v", None), getattr(module, "weight_g", None)
    if g is not None and g.shape == (len(v), *[1] * (v.dim() - 1)):
        return v, g
    weight = weight_of(module)
    g = torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.dim())), keepdim=True)
    return torch.where(g == 0, 1.0, weight), g  # a row of zeros has no direction: with g = 0 any v does


def bias_of(module: nn.Module) -> Tensor | None:
    return None if module.bias is None else weight_of(module, "bias")


def prepared(module: nn.Module, build: Callable[[], Value]) -> Value:
    """`build()`, computed from the parameters and the module's own buffers: with gradients every time, else once until
    they change."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return build()
    parameters: list[Tensor] = [*parameters_of(module)]
    if parameters:
        parameters += (x for x in module._buffers.values() if x is not None)
    cache: ParameterCache[Value] = state_of(module).setdefault("prepared", ParameterCache())
    with torch.autocast(device_of(module).type, enabled=False):
        return cache.get(parameters, build)
