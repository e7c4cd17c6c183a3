"""Comparing a variant of a swapped module with the module itself, on a small copy of its computation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastglow.kernels import backend

from .adapter import Adapter
from .hooks import is_weight_norm
from .swapping import swap

TOLERANCE = 1e-4
"""Largest difference of two float32 results, relative to the largest value: rounding, not another computation."""

SMALLEST = 0.1
"""Results below it count as this large: such as the log-determinant of a rotation, which is nothing but rounding."""

_SEED = 20180612
_seed = torch.default_generator.manual_seed  # torch.manual_seed would be a GPU's, too
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def find_variant(module: nn.Module, adapter: Adapter) -> tuple[str | None, str]:
    """(name of the first variant that computes what the module computes, '') or (None, why there is none)."""
    try:
        expected, structures = _results(module, adapter, None)
    except Exception as error:  # whatever foreign code raises when it is called in another way than ours
        return None, f"it cannot be called as {adapter.kind}: {type(error).__name__}: {_first_line(error)}"
    if not all(bool(x.isfinite().all()) for x in expected):
        return None, "its results are not finite"
    closest, reason = math.inf, f"its results, or what has gradients, are of other types or sizes than {adapter.kind}'s"
    for variant, methods in adapter.variants.items():
        if not all(hasattr(module, method) for method in methods):
            continue
        try:
            found, others = _results(module, adapter, variant)
        except Exception as error:
            if closest == math.inf:
                reason = f"{adapter.kind} computes otherwise: {type(error).__name__}: {_first_line(error)}"
            continue
        difference = _difference(expected, found) if structures == others else math.inf
        if difference <= TOLERANCE:
            return variant, ""
        if difference < closest:
            closest = difference
            named = f"its results differ from those of {adapter.kind}, or their gradients do"
            reason = f"{named}, by {difference:.1g} of the largest value"
    return None, reason


def _results(module: nn.Module, adapter: Adapter, variant: str | None) -> tuple[list[Tensor], list[Any]]:
    """(the results and gradients, the structures of the results) of all calls, in evaluation and in training, by the
    module's own methods or by a variant's."""
    with torch.random.fork_rng(devices=[]), backend.use_backend(backend.REFERENCE), _usual_settings():
        with torch.no_grad():
            copy = _copy(module)
            adapter.prepare(copy)
        if variant is not None:
            swap(copy, (adapter.name, variant))
        found: list[Tensor] = []
        structures: list[Any] = []
        for training in (False, True):
            copy.train(training)
            _seed(_SEED)
            with torch.set_grad_enabled(training):  # methods may use other kernels where there are gradients
                calls, inputs = iter(adapter.calls(copy)), _Inputs()
                while True:
                    with inputs:
                        call = next(calls, None)
                    if call is None:
                        break
                    _seed(_SEED)
                    results = call(copy)
                    structures.append(_structure(results))
                    found += _with_gradients(_tensors(results), inputs.drawn)
    return [x.detach() for x in found], structures


class _Inputs(TorchFunctionMode):
    """Inside, random numbers that are drawn need gradients, where there are any."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), keywords: Any = None) -> Any:
        value = function(*args, **(keywords or {}))
        if function in (torch.randn, torch.rand) and torch.is_grad_enabled():
            self.drawn.append(value.requires_grad_())
        return value


def _with_gradients(results: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """And the gradients of the inputs, for random ones of the results: a module may stop them on their way."""
    differentiable = [x for x in results if x.requires_grad]
    if not differentiable:
        return results
    generator = torch.Generator().manual_seed(_SEED)
    upstream = [torch.randn(x.shape, generator=generator) for x in differentiable]
    gradients = torch.autograd.grad(differentiable, inputs, upstream, retain_graph=True, allow_unused=True)
    return results + [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, inputs, strict=True)]


@contextmanager
def _usual_settings() -> Iterator[None]:
    """Inside, tensors are made in float32 on the CPU, whatever the caller's defaults are."""
    dtype = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float32)
        with torch.device("cpu"), torch.inference_mode(False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_default_dtype(dtype)


def _copy(module: nn.Module) -> nn.Module:
    """A float32 copy on the CPU, without hooks, in which no parameter hides a part of the computation by being
    constant."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in (*part._parameters.values(), *part._buffers.values(), *vars(part).values()):
            if isinstance(value, Tensor):  # also the weight that weight_norm leaves, which deepcopy refuses
                memo[id(value)] = _copied(value)
    with _without_hooks(module):
        copy = deepcopy(module, memo)
    generator = torch.Generator().manual_seed(_SEED)
    for parameter in copy.parameters():
        if not bool(parameter.isfinite().all()) or bool((parameter == parameter.flatten()[:1]).all()):
            values = torch.rand(parameter.shape, generator=generator) + 0.5
            parameter.copy_(values / max(1, parameter[0].numel() if parameter.dim() > 1 else 1))
    return copy


def _copied(x: Tensor) -> Tensor:
    value = x.detach().to("cpu", torch.float32 if x.is_floating_point() else x.dtype, copy=True)
    return nn.Parameter(value, requires_grad=False) if isinstance(x, nn.Parameter) else value


@contextmanager
def _without_hooks(module: nn.Module) -> Iterator[None]:
    """Inside, the module and its parts have only the hooks of weight_norm."""
    kept = [(part, kind, getattr(part, kind)) for part in module.modules() for kind in _HOOKS]
    try:
        for part, kind, hooks in kept:
            if hooks:
                vars(part)[kind] = type(hooks)((key, hook) for key, hook in hooks.items() if is_weight_norm(hook))
        yield
    finally:
        for part, kind, hooks in kept:
            vars(part)[kind] = hooks


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [x for part in value for x in _tensors(part)]
    return []


def _structure(value: Any) -> Any:
    """Types of a result and of its parts."""
    return type(value), [_structure(part) for part in value] if isinstance(value, (tuple, list)) else None


def _difference(expected: list[Tensor], found: list[Tensor]) -> float:
    if [(x.shape, x.dtype) for x in expected] != [(x.shape, x.dtype) for x in found]:
        return math.inf
    if not all(bool(x.isfinite().all()) for x in found):
        return math.inf
    worst = 0.0
    for x, y in zip(expected, found, strict=True):
        if x.numel():
            scale = max(float(x.abs().max()), SMALLEST)
            worst = max(worst, float((x - y).abs().max()) / scale)
    return worst


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
