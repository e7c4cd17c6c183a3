"""`fastglow.accelerate`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from threading import RLock

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fastglow.errors import FastglowError
from fastglow.kernels import backend

from .adapter import Adapter
from .catalogue import ADAPTERS, OPS
from .hooks import what_hides_the_methods
from .probing import find_variant
from .report import LEFT, OWN, SWAPPED, Entry, Report, Swap
from .swapping import Swapped, device_of, restore_one, state_of, swap

_comparing = RLock()
"""Comparisons draw random numbers from PyTorch's generator, which all threads share."""


def accelerate(model: nn.Module, ops: str | Iterable[str] | None = None, strict: bool = False) -> Report:
    """Lets the known modules of any PyTorch model compute with fastglow's kernels, in place.

    A module is known by its structure and by what it computes: on a copy of it, small random inputs must give the same
    results and gradients before and after, in training and in evaluation, with the same random numbers. Parameters,
    buffers, state_dict, hooks, training mode and `isinstance` stay as they are; copies and pickles of the model are
    swapped, too. While a part of a swapped module has a hook, was replaced or parametrized, the module runs its own
    code, which calls it. Swap again what is added later; modules that are swapped already stay so.

    Args:
        model: any module, also inside of DistributedDataParallel or torch.compile, on any device, in any dtype.
        ops: the operations to use, of `fastglow.patching.OPS`; None: all whose results are the module's for the
            same state of PyTorch's random number generator.
        strict: an error if a known module was left or none was found; then nothing is swapped.

    Returns:
        What was swapped, with `undo()`; also a context manager that undoes the swaps at its end.

    Raises:
        FastglowError: the model is not a torch.nn.Module, an operation has another name, or `strict` and a module was
            left.
    """
    if not isinstance(model, nn.Module):
        raise FastglowError(f"accelerate takes a torch.nn.Module, not {type(model).__name__}: pass the model itself")
    chosen = _chosen(ops)
    report = Report()
    try:
        with _comparing:
            for name, module in _foreign_modules(model, report):
                _accelerate(name, module, chosen, report)
        if not report.entries:
            known = "fastglow knows" if ops is None else f"fastglow can swap to {', '.join(a.op for a in chosen)}"
            reason = f"no module in it looks like one that {known}: see docs/accelerate.md"
            report.entries.append(Entry("", _path(type(model)), LEFT, None, reason))
        if strict and report.left:
            raise FastglowError(f"accelerate left {'; '.join(map(str, report.left))}")
    except BaseException:
        report.undo()
        raise
    return report


def _chosen(ops: str | Iterable[str] | None) -> list[Adapter]:
    if ops is None:
        return [adapter for adapter in ADAPTERS.values() if not adapter.draws_own_noise]
    names = [ops] if isinstance(ops, str) or not isinstance(ops, Iterable) else list(ops)
    unknown = [name for name in names if name not in OPS]
    if unknown or not names:
        raise FastglowError(f"ops={unknown[0] if unknown else names!r} must be among {', '.join(OPS)}")
    return [adapter for adapter in ADAPTERS.values() if adapter.op in names]


def _foreign_modules(model: nn.Module, report: Report) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model with their names, but for fastglow's own and those of TorchScript with their parts, which
    are reported."""
    passed: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(passed):
            continue
        own = _is_own(module)
        if own or isinstance(module, torch.jit.ScriptModule):
            passed += (f"{name}." if name else "",)
            text = (
                "which runs on its kernels anyway"
                if own
                else "a script of a model stays as it is; accelerate it before it is traced"
            )
            text = f"{'fastglow' if own else 'TorchScript'}'s own module: {text}"
            report.entries.append(Entry(name, _path(type(module)), OWN if own else LEFT, None, text))
        elif not any(map(is_lazy, module._parameters.values())):
            yield name, module


def _is_own(module: nn.Module) -> bool:
    homes = ("fastglow.models.", "fastglow.modules.")
    return any(cls.__module__.startswith(homes) for cls in type(module).__mro__)


def _accelerate(name: str, module: nn.Module, chosen: list[Adapter], report: Report) -> None:
    before = (module._fastglow_key, state_of(module)) if isinstance(module, Swapped) else None
    if before is not None and not _swaps_otherwise(module, ADAPTERS[before[0][0]], chosen):
        report.entries.append(_entry(name, module, "swapped before"))
        return
    restore_one(module)
    try:
        reasons = []
        for adapter in chosen:
            if not _claims(adapter, module):
                continue
            variant, reason = _match(module, adapter)
            if variant is not None:
                swap(module, (adapter.name, variant))
                report._swaps.append(Swap(module, state_of(module), before))
                report.entries.append(_entry(name, module, variant))
                return
            reasons.append(reason)
        if reasons:
            report.entries.append(Entry(name, _path(type(module)), LEFT, None, "; or ".join(reasons)))
    finally:
        if before is not None and not isinstance(module, Swapped):
            swap(module, *before)


def _swaps_otherwise(module: nn.Module, current: Adapter, chosen: list[Adapter]) -> bool:
    """Whether a swapped module is to be swapped by another adapter, which the caller asks for by its operation."""
    others = [adapter for adapter in chosen if adapter.draws_own_noise and adapter is not current]
    return any(_claims(adapter, module) for adapter in others)


def _claims(adapter: Adapter, module: nn.Module) -> bool:
    try:
        return adapter.claims(module)
    except Exception:  # whatever a property of foreign code raises; the known modules have none that do
        return False


def _entry(name: str, module: nn.Module, how: str) -> Entry:
    assert isinstance(module, Swapped)
    adapter = ADAPTERS[module._fastglow_key[0]]
    text = f"{adapter.kind}, {how}: {_runs_on(module, adapter)}"
    return Entry(name, _path(module._fastglow_original), SWAPPED, adapter.op, text)


def _match(module: nn.Module, adapter: Adapter) -> tuple[str | None, str]:
    """(the variant to swap to, '') or (None, why there is none)."""
    hidden = what_hides_the_methods(module)
    if hidden is not None:
        return None, hidden
    difference = adapter.difference(module)
    if difference is not None:
        return None, f"unlike {adapter.kind}, {difference}"
    if any(x.is_meta for x in (*module.parameters(), *module.buffers())):
        return None, "its parameters are on the meta device, where results cannot be compared: load them first"
    return find_variant(module, adapter)


def _runs_on(module: nn.Module, adapter: Adapter) -> str:
    name, device = backend.backend_name(), device_of(module)
    if name == backend.TRITON or (name == backend.AUTOMATIC and device.type == "cuda"):
        return "Triton kernels"
    if name == backend.REFERENCE:
        return f"PyTorch reference, as {backend.VARIABLE} or use_backend says"
    own = " (the module's own code, which is as fast)" if adapter.only_kernels else ""
    return f"PyTorch reference{own}, because its parameters are on {device}"


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
