"""`fastglow.accelerate`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from fastglow.errors import FastglowError
from fastglow.kernels import backend

from .adapter import Adapter
from .catalogue import ADAPTERS, OPS
from .probing import find_variant
from .report import LEFT, OWN, SWAPPED, Entry, Report, Swap
from .swapping import Swapped, device_of, restore_one, swap


def accelerate(model: nn.Module, ops: str | Iterable[str] | None = None, strict: bool = False) -> Report:
    """Lets the known modules of any PyTorch model compute with fastglow's kernels, in place.

    A module is known by its structure and by what it computes: on a copy of it, small random inputs must give
    the same results before and after, in training and in evaluation, with the same random numbers. Parameters,
    buffers, state_dict, hooks, training mode and `isinstance` stay as they are; copies and pickles of the model are
    swapped, too. While a part of a swapped module has a hook, or was replaced, the module runs its own code, which
    calls it. Swap again what is added later; modules that are swapped already stay so.

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
        for name, module in _foreign_modules(model, report):
            _accelerate(name, module, chosen, report)
        if not report.entries:
            reason = "no module in it looks like one that fastglow knows: see docs/accelerate.md"
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
    names = [ops] if isinstance(ops, str) else list(ops)
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
    before = module._fastglow_key if isinstance(module, Swapped) else None
    if before is not None and not _swaps_otherwise(module, ADAPTERS[before[0]], chosen):
        report.entries.append(_entry(name, module, "swapped before"))
        return
    restore_one(module)
    reasons = []
    for adapter in chosen:
        if not adapter.claims(module):
            continue
        variant, reason = _match(module, adapter)
        if variant is not None:
            swap(module, (adapter.name, variant))
            report._swaps.append(Swap(module, (adapter.name, variant), before))
            report.entries.append(_entry(name, module, variant))
            return
        reasons.append(reason)
    if reasons:
        report.entries.append(Entry(name, _path(type(module)), LEFT, None, "; or ".join(reasons)))
    if before is not None:
        swap(module, before)


def _swaps_otherwise(module: nn.Module, current: Adapter, chosen: list[Adapter]) -> bool:
    """Whether a swapped module is to be swapped by another adapter, which the caller asks for by its operation."""
    others = [adapter for adapter in chosen if adapter.draws_own_noise and adapter is not current]
    return any(adapter.claims(module) for adapter in others)


def _entry(name: str, module: nn.Module, how: str) -> Entry:
    assert isinstance(module, Swapped)
    adapter = ADAPTERS[module._fastglow_key[0]]
    text = f"{adapter.kind}, {how}: {_runs_on(module, adapter)}"
    return Entry(name, _path(module._fastglow_original), SWAPPED, adapter.op, text)


def _match(module: nn.Module, adapter: Adapter) -> tuple[str | None, str]:
    """(the variant to swap to, '') or (None, why there is none)."""
    if "forward" in vars(module):
        return None, "its forward is replaced on the instance: call accelerate before"
    if is_parametrized(module):
        return None, "its parameters are parametrized: remove that first"
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
