"""Swapping a module's methods in place, and back.

A swapped module gets a subclass of its class, made once for each class and variant: `isinstance`, hooks, parameters,
buffers and state_dict stay as they are, and other modules of the class are not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from fastglow.errors import FastglowError
from fastglow.kernels import backend
from fastglow.modules.parameter_cache import parameters_of

from .adapter import Method
from .hooks import must_call_parts, part_classes

Key = tuple[str, str]
"""Names of an adapter and of its variant."""

_STATE = "_fastglow_state"
"""Name of the attribute with what a swapped module has cached."""

_PARTS = "_fastglow_parts"
"""Of the attribute with the classes that its parts had."""


class SwapState(dict):
    """What the methods of a swapped module keep between calls, one for each swap. Copies and pickles of the module
    start without it."""

    undone = False
    """Whether the report of the swap has been undone, perhaps while another swap was on top of it."""

    def __reduce_ex__(self, protocol: Any) -> tuple[type, tuple]:
        return SwapState, ()


class Swapped:
    """Marks the classes of swapped modules."""

    _fastglow_original: type[nn.Module]
    _fastglow_key: Key  # names of adapter and variant

    def __prepare_scriptable__(self) -> NoReturn:
        """What torch.jit.script calls first."""
        raise FastglowError(
            f"torch.jit.script cannot compile an accelerated {type(self).__name__}: undo it first, with report.undo() "
            "or fastglow.patching.restore(model)"
        )


def state_of(module: nn.Module) -> SwapState:
    return vars(module)[_STATE]


def device_of(module: nn.Module) -> torch.device:
    """That of its parameters."""
    return next((x.device for x in parameters_of(module)), torch.device("cpu"))


def swap(module: nn.Module, key: Key, state: SwapState | None = None) -> None:
    """Gives a module the methods of a variant of an adapter; `state`: of the same swap, before another."""
    vars(module)[_STATE] = SwapState() if state is None else state
    remember_parts(module)
    module.__class__ = swapped_class(type(module), key)


def remember_parts(module: nn.Module) -> None:
    """Takes the parts that a module has now for those that its methods may compute without calling them."""
    vars(module)[_PARTS] = part_classes(module)


def restore(model: nn.Module) -> None:
    """Gives all swapped modules of a model their own methods back: also of copies, which no report knows."""
    for module in model.modules():
        restore_one(module)


def restore_one(module: nn.Module) -> None:
    """Gives a swapped module its own methods back; others, and its parts, are left as they are."""
    if isinstance(module, Swapped):
        original: type = module._fastglow_original
        if is_parametrized(module):  # since: its class is made from the swapped one
            cls = type(module)
            own = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
            original = type(cls.__name__, (original,), own)
        module.__class__ = original
        for name in (_STATE, _PARTS):
            vars(module).pop(name, None)


_classes: dict[tuple[type, Key, tuple[Callable, ...]], type] = {}


def swapped_class(original: type, key: Key) -> type:
    """The subclass of `original` with the methods of the variant `key`."""
    from .catalogue import ADAPTERS  # whose adapters import this file

    adapter = ADAPTERS[key[0]]
    methods = {name: (getattr(original, name), method) for name, method in adapter.variants[key[1]].items()}
    whole_key = original, key, tuple(theirs for theirs, _ in methods.values())  # which other code may replace
    if whole_key not in _classes:
        _classes[whole_key] = _make_class(original, key, methods, adapter.only_kernels)
    return _classes[whole_key]


def _make_class(original: type, key: Key, methods: Mapping[str, tuple[Callable, Method]], only_kernels: bool) -> type:
    namespace = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "__init__": _init(original),
        "__reduce_ex__": _reduce,
        "train": _train,
        "_load_from_state_dict": _load_from_state_dict,
        "_fastglow_original": original,
        "_fastglow_key": key,
        **{name: _method(name, *both, only_kernels) for name, both in methods.items()},
    }
    # The original comes first: PyTorch's parametrizations take the first base for the class of the module.
    return type(original.__name__, (original, Swapped), namespace)


def _method(name: str, original: Callable, method: Method, only_kernels: bool) -> Callable:
    @wraps(original)
    def call(self: Any, *args: Any, **kw: Any) -> Any:
        current = getattr(self._fastglow_original, name)
        replaced = current is not original
        if replaced or (only_kernels and not _wants_kernels(args, kw)) or must_call_parts(self, self._fastglow_parts):
            return current(self, *args, **kw)
        return method(self, original.__get__(self), *args, **kw)

    return call


def _wants_kernels(args: tuple[Any, ...], kw: dict[str, Any]) -> bool:
    for x in (*args, *kw.values()):
        if isinstance(x, torch.Tensor):
            return backend.wants_kernels(x.device)
    return True


def _init(original: type) -> Callable:
    """Of another module that is made by `type(module)(...)`: of the original class."""

    @wraps(original.__init__)  # type: ignore[misc]
    def init(self: Any, *args: Any, **kw: Any) -> None:
        if "_fastglow_key" in vars(type(self)):
            self.__class__ = original
        original.__init__(self, *args, **kw)  # type: ignore[misc]

    return init


def _train(self: Any, *args: Any, **kw: Any) -> Any:
    """As the original's. Weights are often written between training and evaluation in ways that nothing counts, such
    as through `parameter.data`."""
    state_of(self).clear()
    return self._fastglow_original.train(self, *args, **kw)


def _load_from_state_dict(self: Any, *args: Any, **kw: Any) -> None:
    """As the original's. Writes to weights that were made under torch.inference_mode are not counted either."""
    state_of(self).clear()
    self._fastglow_original._load_from_state_dict(self, *args, **kw)


def _reduce(self: Any, protocol: Any) -> tuple:
    """Pickles and copies are swapped, too: the class is made again from the original one. Those that a module makes in
    its own way are not."""
    cls = self._fastglow_original
    constructor, arguments, *rest = cls.__reduce_ex__(self, max(int(protocol), 2))
    if not arguments or arguments[0] is not type(self):
        return constructor, arguments, *rest
    return _new, (constructor, cls, self._fastglow_key, *arguments[1:]), *rest


def _new(constructor: Callable, original: type[nn.Module], key: Key, *arguments: Any) -> Any:
    return constructor(swapped_class(original, key), *arguments)
