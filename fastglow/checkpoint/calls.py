"""The names that a pickle may contain, and replacements for the few functions that checkpoints call.

Nothing is imported: a call runs the replacement in `CALLS` or, for names in `INERT_CALLS`, creates an empty record.
Every other name raises an error that contains it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from fastglow.errors import FastglowError

from .records import DTYPES, MAX_DIMENSIONS, STORAGE_DTYPES, Global, Inert, PickledTensor, Storage, damaged, show

T = TypeVar("T")

# Classes that a file may name in addition to those of `_is_model_class`.
DATA_NAMES = {
    *("builtins.object", "builtins.int", "builtins.float", "builtins.bool", "builtins.str"),
    *("torch.Tensor", "torch._tensor.Tensor", "torch.memory_format"),
    *("argparse.Namespace", "types.SimpleNamespace"),
    *("numpy.dtype", "numpy.ndarray", "numpy.float64", "numpy.float32", "numpy.int64"),
}
# Functions and classes whose calls create an empty record.
INERT_CALLS = {
    "numpy.dtype",
    *(
        f"{module}.{name}"
        for module in ("numpy.core", "numpy._core")
        for name in ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
    ),
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath",
    "datetime.datetime",
    "datetime.date",
    # what torch < 1.1 stored in every module's `_backend`
    "torch.nn.backends.thnn._get_thnn_function_backend",
}
_PYTHON_2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def _is_model_class(module: str, name: str) -> bool:
    """Whether `module.name` may be the class of a pickled model, optimizer or part of one.

    That holds for torch.nn, torch.optim and every module outside Python, torch and numpy, such as NVIDIA's own
    modules (`glow`, `mellotron.model`, `__main__`, ...) under any package name.
    """
    if module.startswith(("torch.nn.", "torch.optim.")) or module in ("torch.nn", "torch.optim", "__main__"):
        return True
    top = module.partition(".")[0]
    return top not in sys.stdlib_module_names and top not in ("torch", "numpy")


def admit(module: object, name: object) -> torch.dtype | Global:
    """A dtype for the name of one, or a `Global` for any other permitted name; else raises FastglowError."""
    if not (isinstance(module, str) and isinstance(name, str)):
        raise damaged("a global's name is not a string")
    module = _PYTHON_2_MODULES.get(module, module)
    full = f"{module}.{name}"
    if full in DTYPES:
        return DTYPES[full]
    if full in CALLS or full in INERT_CALLS or full in DATA_NAMES or full in STORAGE_DTYPES:
        return Global(full)
    if _DOTTED.fullmatch(module) and _IDENTIFIER.fullmatch(name) and _is_model_class(module, name):
        return Global(full)
    raise _refusal(full)


def call(name: str, args: tuple[Any, ...]) -> Any:
    """The result of calling `name` with `args`; raises FastglowError if checkpoints never need that function."""
    if name in CALLS:
        return CALLS[name](*args)
    if name in INERT_CALLS:
        return Inert(name)
    raise _refusal(name)


def require(kind: type[T] | tuple[type[T], ...], value: object, what: str) -> T:
    """`value` if it has the type `kind` (a bool does not count as int); else raises FastglowError about `what`."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise damaged(f"{what} is {show(type(value).__name__)}")
    return value


def _refusal(name: str) -> FastglowError:
    return FastglowError(
        f"refused: the file asks Python for {show(name)}, which a checkpoint never needs; nothing was run"
    )


def _ints(values: object) -> tuple[int, ...]:
    sizes = _sequence(values, "a tensor's shape")
    if len(sizes) > MAX_DIMENSIONS:
        raise damaged(f"a tensor has {len(sizes)} dimensions")
    return tuple(require(int, n, "a tensor's size") for n in sizes)


def _sequence(values: object, what: str) -> list[Any] | tuple[Any, ...]:
    return values if isinstance(values, list) else require(tuple, values, what)


def _tensor(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    _requires_grad: object = None,
    _hooks: object = None,
    metadata: object = None,
    *,
    dtype: object = None,
) -> PickledTensor:
    """torch._utils._rebuild_tensor and _rebuild_tensor_v2."""
    storage = require(Storage, storage, "a tensor's storage")
    if isinstance(metadata, dict) and (metadata.get("neg") or metadata.get("conj")):
        raise FastglowError("a tensor is a negative or conjugate view: save it after resolve_neg().resolve_conj()")
    kind = storage.dtype if dtype is None else require(torch.dtype, dtype, "a tensor's dtype")
    return PickledTensor(storage, kind, require(int, offset, "a tensor's offset"), _ints(size), _ints(stride))


def _tensor_v3(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    requires_grad: object,
    hooks: object,
    dtype: object,
    metadata: object = None,
) -> PickledTensor:
    """torch._utils._rebuild_tensor_v3, for dtypes without a storage class."""
    return _tensor(storage, offset, size, stride, requires_grad, hooks, metadata, dtype=dtype)


def _tensor_of_type(function: object, _type: object, args: object, _state: object) -> PickledTensor:
    name = require(Global, function, "a tensor's function").name
    if name not in _TENSOR_CALLS:
        raise _refusal(name)
    return _TENSOR_CALLS[name](*require(tuple, args, "a tensor's arguments"))


def _parameter(data: object, *_unused: object) -> PickledTensor:
    return require(PickledTensor, data, "a parameter's data")


def checked_key(key: object) -> Any:
    """`key` if hashing it takes bounded time; else raises FastglowError."""
    scalar = (str, bytes, bool, float, type(None), torch.dtype, Global, Inert, PickledTensor)
    parts = key if isinstance(key, tuple) else (key,)
    for part in parts:
        if not isinstance(part, scalar) and not (isinstance(part, int) and abs(part) < 2**60):
            raise damaged(f"a dictionary's key is {show(type(part).__name__)}")
    return key


def _mapping(items: object = (), *_unused: object) -> dict[Any, Any]:
    if isinstance(items, Global) or items is None:  # defaultdict's factory
        return {}
    pairs = items.items() if isinstance(items, dict) else _sequence(items, "a dictionary's items")
    return {checked_key(key): value for key, value in pairs}


def members(items: object = ()) -> set[Any]:
    parts = items if isinstance(items, set | frozenset) else _sequence(items, "a set's members")
    return {checked_key(item) for item in parts}


def _reconstructor(cls: object, _base: object, _base_state: object = None) -> Inert:
    return Inert(require(Global, cls, "an object's class").name)


def new_object(cls: object, *args: Any) -> Any:
    name = require(Global, cls, "an object's class").name
    if name.startswith("copyreg."):
        raise _refusal(name)
    return CALLS[name](*args) if name in CALLS else Inert(name)


def _bytes(data: object = b"") -> bytes:
    return data if isinstance(data, bytes) else bytes(require(bytearray, data, "a byte string"))


def _encoded(text: object, encoding: object = "latin1") -> bytes:
    if not isinstance(encoding, str) or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise damaged(f"bytes in the encoding {show(encoding)}")
    return require(str, text, "a byte string").encode(encoding)


_TENSOR_CALLS: dict[str, Callable[..., PickledTensor]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    # how torch < 1.0 pickled parameters
    "torch.nn.parameter.Parameter": _parameter,
    "torch.nn.Parameter": _parameter,
    "torch.autograd.variable.Variable": _parameter,
}
CALLS: dict[str, Callable[..., Any]] = {
    **_TENSOR_CALLS,
    "torch._tensor._rebuild_from_type_v2": _tensor_of_type,
    "torch.Size": lambda sizes=(): _ints(sizes),
    "torch.device": lambda *parts: ":".join(show(part) for part in parts),
    "torch.serialization._get_layout": lambda name: show(name),
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": _mapping,
    "collections.Counter": _mapping,
    "builtins.dict": _mapping,
    "builtins.set": members,
    "builtins.frozenset": members,
    "builtins.list": lambda items=(): list(_sequence(items, "a list's items")),
    "builtins.tuple": lambda items=(): tuple(_sequence(items, "a tuple's items")),
    "builtins.bytearray": _bytes,
    "builtins.bytes": _bytes,
    "builtins.complex": lambda re=0.0, im=0.0: complex(re, im),
    "builtins.slice": lambda *limits: tuple(limits),
    "_codecs.encode": _encoded,
    "copyreg._reconstructor": _reconstructor,
    "copyreg.__newobj__": new_object,
    "copyreg.__newobj_ex__": lambda cls, _args, _kwargs: new_object(cls),
}
