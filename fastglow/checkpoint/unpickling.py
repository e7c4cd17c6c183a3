"""Reads a pickle as data: an interpreter of the pickle opcodes that never imports or calls what a file names.

`pickle.Unpickler` does what the file tells it to: import names, call them, set attributes. A checkpoint needs
none of that, so this reader keeps the stack machine and leaves the rest out. What a file names stays a name
(`Global`); an object of a class stays a record of its state (`Inert`); a tensor stays the description of
where its numbers lie (`PickledTensor`). The few functions that every checkpoint calls (`OrderedDict`, tensor
rebuilding) are answered from the table `CALLS` below. Calling anything else is refused, and the error says
which name was asked for.
"""

from __future__ import annotations

import re
import reprlib
import sys
from collections.abc import Callable, Sized
from dataclasses import dataclass, field
from math import prod
from typing import Any, BinaryIO

import torch

from fastglow.errors import FastglowError

from .opcodes import read_operations

# A checkpoint with optimizer state takes some 150,000 operations, a few microseconds each. Each may make an
# object of some dozen bytes, so the limit bounds the time and the memory that a hostile file can ask for.
MAX_OPERATIONS = 1_000_000
# One operation may copy what earlier ones made (`list(x)`, `update(x)`): entries and bytes copied in all.
MAX_COPIED = 4_000_000
MAX_INT_BITS = 128
MAX_DIMENSIONS = 8

DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "Untyped": torch.uint8,
}
STORAGE_DTYPES = {
    f"{module}.{name}Storage": dtype
    for name, dtype in _STORAGES.items()
    for module in ("torch", "torch.cuda", "torch.storage")
}

# Classes that a file may name besides those of `_is_model_class`; none of them is ever looked up.
DATA_NAMES = {
    *("builtins.object", "builtins.int", "builtins.float", "builtins.bool", "builtins.str"),
    *("torch.Tensor", "torch._tensor.Tensor", "torch.memory_format"),
    *("argparse.Namespace", "types.SimpleNamespace"),
    *("numpy.dtype", "numpy.ndarray", "numpy.float64", "numpy.float32", "numpy.int64"),
}
# Functions and classes whose call leaves a record behind and nothing else.
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


def show(value: object, limit: int = 100) -> str:
    """`value` as it may stand in a one-line message, whatever a file put into it."""
    text = value[: limit + 1] if isinstance(value, str) else reprlib.repr(value)
    text = text if text.isascii() and text.isprintable() else ascii(text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def damaged(what: str) -> FastglowError:
    return FastglowError(f"damaged or truncated file: {what}; download or copy it again")


def check_shape(shape: tuple[int, ...]) -> None:
    """Refuse what torch could not even describe: negative sizes, more elements than an index can count."""
    if len(shape) > MAX_DIMENSIONS or any(n < 0 for n in shape) or prod(max(n, 1) for n in shape) > 2**48:
        raise damaged(f"a tensor has the shape {show(shape)}")


class Global:
    """A name that the file mentions, `module.name`."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


@dataclass(eq=False, repr=False)
class Inert:
    """An object that the file describes: its class's name and its state, nothing that runs."""

    class_name: str
    state: dict[Any, Any] = field(default_factory=dict)


@dataclass(eq=False, repr=False)
class Storage:
    """`nbytes` bytes of numbers: those at `offset` of the record `key` of the container."""

    key: str
    dtype: torch.dtype
    nbytes: int
    offset: int = 0


@dataclass(eq=False, repr=False)
class PickledTensor:
    """A view of a storage; `offset` and `stride` in elements."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self):
        check_shape(self.shape)
        if len(self.shape) != len(self.stride):
            raise damaged(f"a tensor of shape {show(self.shape)} has strides {show(self.stride)}")
        if self.offset < 0 or any(step < 0 for step in self.stride):
            raise damaged(f"a tensor of shape {show(self.shape)} has a negative offset or stride")
        # the stride of a dimension of one element means nothing, and may be anything
        self.stride = tuple(step if n > 1 else 1 for n, step in zip(self.shape, self.stride, strict=True))
        if self.span and (self.offset + self.span) * self.dtype.itemsize > self.storage.nbytes:
            raise damaged(f"a tensor of shape {show(self.shape)} reaches past its {self.storage.nbytes} bytes")

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def span(self) -> int:
        """Elements from the first to the last one, both included."""
        if not self.numel:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


def _is_model_class(module: str, name: str) -> bool:
    """Whether `module.name` may stand for the class of a pickled model, optimizer or their parts.

    Those are torch.nn's and torch.optim's and everything that comes with neither Python nor torch nor
    numpy: the reference's own modules (`glow`, `mellotron.model`, `__main__`, ...) under any package name.
    """
    if module.startswith(("torch.nn.", "torch.optim.")) or module in ("torch.nn", "torch.optim", "__main__"):
        return True
    top = module.partition(".")[0]
    return top not in sys.stdlib_module_names and top not in ("torch", "numpy")


def _admit(module: object, name: object) -> Any:
    """What a file gets for a name: a dtype, or the name itself if it is on a list above."""
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


def _refusal(name: str) -> FastglowError:
    return FastglowError(
        f"refused: the file asks Python for {show(name)}, which a checkpoint never needs; nothing was run"
    )


def _require(kind: type | tuple[type, ...], value: Any, what: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise damaged(f"{what} is {show(type(value).__name__)}")
    return value


def _ints(values: Any) -> tuple[int, ...]:
    if len(_require((tuple, list), values, "a tensor's shape")) > MAX_DIMENSIONS:
        raise damaged(f"a tensor has {len(values)} dimensions")
    return tuple(_require(int, n, "a tensor's size") for n in values)


def _tensor(
    storage, offset, size, stride, _requires_grad=None, _hooks=None, metadata=None, *, dtype=None
) -> PickledTensor:
    """torch._utils._rebuild_tensor and _rebuild_tensor_v2."""
    storage = _require(Storage, storage, "a tensor's storage")
    if isinstance(metadata, dict) and (metadata.get("neg") or metadata.get("conj")):
        raise FastglowError("a tensor is a negative or conjugate view: save it after resolve_neg().resolve_conj()")
    dtype = storage.dtype if dtype is None else _require(torch.dtype, dtype, "a tensor's dtype")
    return PickledTensor(storage, dtype, _require(int, offset, "a tensor's offset"), _ints(size), _ints(stride))


def _tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None) -> PickledTensor:
    """torch._utils._rebuild_tensor_v3, for dtypes that have no storage class."""
    return _tensor(storage, offset, size, stride, requires_grad, hooks, metadata, dtype=dtype)


def _tensor_of_type(function, _type, args, _state) -> PickledTensor:
    name = _require(Global, function, "a tensor's function").name
    if name not in _TENSOR_CALLS:
        raise _refusal(name)
    return _TENSOR_CALLS[name](*_require(tuple, args, "a tensor's arguments"))


def _parameter(data, *_unused) -> PickledTensor:
    return _require(PickledTensor, data, "a parameter's data")


def _checked_key(key: Any) -> Any:
    """`key` if hashing it costs nothing that depends on the file, else an error."""
    scalar = (str, bytes, bool, float, type(None), torch.dtype, Global, Inert, PickledTensor)
    parts = key if isinstance(key, tuple) else (key,)
    for part in parts:
        if not isinstance(part, scalar) and not (isinstance(part, int) and abs(part) < 2**60):
            raise damaged(f"a dictionary's key is {show(type(part).__name__)}")
    return key


def _mapping(items=(), *_unused) -> dict:
    if isinstance(items, (Global, type(None))):  # defaultdict's factory
        return {}
    pairs = items.items() if isinstance(items, dict) else _require((list, tuple), items, "a dictionary's items")
    return {_checked_key(key): value for key, value in pairs}


def _members(items=()) -> set:
    return {_checked_key(item) for item in _require((list, tuple, set, frozenset), items, "a set's members")}


def _reconstructor(cls, _base, _base_state=None) -> Inert:
    return Inert(_require(Global, cls, "an object's class").name)


def _new_object(cls, *args) -> Any:
    name = _require(Global, cls, "an object's class").name
    if name.startswith("copyreg."):
        raise _refusal(name)
    return CALLS[name](*args) if name in CALLS else Inert(name)


def _encoded(text, encoding="latin1") -> bytes:
    if encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise damaged(f"bytes in the encoding {show(encoding)}")
    return _require(str, text, "a byte string").encode(encoding)


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
    "builtins.set": _members,
    "builtins.frozenset": _members,
    "builtins.list": lambda items=(): list(_require((list, tuple), items, "a list's items")),
    "builtins.tuple": lambda items=(): tuple(_require((list, tuple), items, "a tuple's items")),
    "builtins.bytearray": lambda data=b"": bytes(_require((bytes, bytearray), data, "a byte string")),
    "builtins.bytes": lambda data=b"": bytes(_require((bytes, bytearray), data, "a byte string")),
    "builtins.complex": lambda re=0.0, im=0.0: complex(re, im),
    "builtins.slice": lambda *limits: tuple(limits),
    "_codecs.encode": _encoded,
    "copyreg._reconstructor": _reconstructor,
    "copyreg.__newobj__": _new_object,
    "copyreg.__newobj_ex__": lambda cls, _args, _kwargs: _new_object(cls),
}


class _Machine:
    """The stack, the marks and the memo of one pickle."""

    def __init__(self, persistent_load: Callable[[Any], Any]):
        self.persistent_load = persistent_load
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.n_copied = 0

    def run(self, stream: BinaryIO) -> Any:
        for count, (opcode, argument) in enumerate(read_operations(stream)):
            if count >= MAX_OPERATIONS:
                raise FastglowError(f"more than {MAX_OPERATIONS:,} pickle operations: not a checkpoint of weights")
            action = _ACTIONS.get(opcode.name)
            if action is None:
                if opcode.name == "STOP":
                    return self.stack.pop()
                raise FastglowError(f"refused: the pickle operation {opcode.name} has no place in a checkpoint")
            action(self, argument)
        raise damaged("a pickle without an end")

    def push(self, value: Any) -> None:
        self.stack.append(value)  # looked up after the value was made, which may change the stack

    def count_copies(self, *values: Any) -> None:
        """To be told before `values` are copied, so that doing so again and again comes to an end."""
        self.n_copied += sum(len(value) for value in values if isinstance(value, Sized))
        if self.n_copied > MAX_COPIED:
            raise FastglowError(f"copies more than {MAX_COPIED:,} entries of its own: not a checkpoint of weights")

    def pop_marked(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def mark(self, _argument) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def integer(self, value) -> None:
        if not isinstance(value, bool) and value.bit_length() > MAX_INT_BITS:
            raise damaged(f"an integer of {value.bit_length()} bits")
        self.stack.append(value)

    def pop(self, _argument) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_marked()

    def put(self, index) -> None:
        self.memo[index] = self.stack[-1]

    def memoize(self, _argument) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, index) -> None:
        self.stack.append(self.memo[index])

    def pack(self, size: int) -> None:
        items = [self.stack.pop() for _ in range(size)]
        self.stack.append(tuple(reversed(items)))

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, Inert):  # what an object that inherits from list holds is of no use
            _require(list, target, "a list").extend(items)

    def set_items(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, Inert):
            items = _require(dict, target, "a dictionary")
            items.update((_checked_key(key), value) for key, value in zip(flat[::2], flat[1::2], strict=True))

    def make_dict(self, _argument) -> None:
        items = self.pop_marked()
        self.stack.append({})
        self.set_items(items)

    def add_items(self, items: list[Any]) -> None:
        _require(set, self.stack[-1], "a set").update(_members(items))

    def global_name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(_admit(module, name))

    def stack_global(self, _argument) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(_admit(module, name))

    def call(self, function: Any, args: Any) -> None:
        """REDUCE and its like: only the names of the tables above are answered."""
        name = _require(Global, function, "what the file calls").name
        args = _require(tuple, args, "the arguments of a call")
        self.count_copies(args, *args)
        if name in CALLS:
            self.stack.append(CALLS[name](*args))
        elif name in INERT_CALLS:
            self.stack.append(Inert(name))
        else:
            raise _refusal(name)

    def reduce(self, _argument) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.call(function, args)

    def instance(self, argument: str) -> None:
        args = tuple(self.pop_marked())
        module, _, name = argument.partition(" ")
        self.call(_admit(module, name), args)

    def object(self, _argument) -> None:
        cls, *args = self.pop_marked()
        self.call(cls, tuple(args))

    def new_object(self, _argument) -> None:
        args, cls = _require(tuple, self.stack.pop(), "the arguments of a class"), self.stack.pop()
        self.count_copies(args, *args)
        self.stack.append(_new_object(cls, *args))

    def new_object_ex(self, _argument) -> None:
        _kwargs, _args, cls = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append(_new_object(cls))

    def build(self, _argument) -> None:
        """Record an object's state. Of dictionaries and tensors it is an extra that no model needs."""
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, Inert):
            return
        parts = state[:2] if isinstance(state, tuple) else (state,)  # (__dict__, __slots__)
        self.count_copies(*parts)
        for part in parts:
            if isinstance(part, dict):
                target.state.update(part)

    def persistent_id(self, _argument) -> None:
        self.stack.append(self.persistent_load(self.stack.pop()))


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = (
    *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **{name: lambda m, _, value=value: m.stack.append(value) for name, value in _CONSTANTS.items()},
    **dict.fromkeys(_LITERALS, _Machine.push),
    "PROTO": lambda m, _: None,
    "FRAME": lambda m, _: None,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": lambda m, _: m.pop_marked() and None,
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), _Machine.integer),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "MEMOIZE": _Machine.memoize,
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "EMPTY_SET": lambda m, _: m.stack.append(set()),
    "LIST": lambda m, _: m.push(m.pop_marked()),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_marked())),
    "TUPLE1": lambda m, _: m.pack(1),
    "TUPLE2": lambda m, _: m.pack(2),
    "TUPLE3": lambda m, _: m.pack(3),
    "DICT": _Machine.make_dict,
    "FROZENSET": lambda m, _: m.push(_members(m.pop_marked())),
    "APPEND": lambda m, _: m.append([m.stack.pop()]),
    "APPENDS": lambda m, _: m.append(m.pop_marked()),
    "SETITEM": lambda m, _: m.set_items([m.stack.pop(), m.stack.pop()][::-1]),
    "SETITEMS": lambda m, _: m.set_items(m.pop_marked()),
    "ADDITEMS": lambda m, _: m.add_items(m.pop_marked()),
    "GLOBAL": _Machine.global_name,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "INST": _Machine.instance,
    "OBJ": _Machine.object,
    "NEWOBJ": _Machine.new_object,
    "NEWOBJ_EX": _Machine.new_object_ex,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent_id,
}


def read_pickle(stream: BinaryIO, persistent_load: Callable[[Any], Any] | None = None) -> Any:
    """The object that the next pickle of `stream` describes, made of plain data and this module's records.

    Args:
        stream: a file whose reads are bounded by its length (bytes in memory or a memory map); afterwards
            it stands behind the pickle.
        persistent_load: answers persistent ids (torch's reference to a storage).

    Raises:
        FastglowError: the pickle calls or names something that no checkpoint needs, or it is damaged.
    """

    def no_persistent_ids(_id):
        raise damaged("an unexpected reference to a storage")

    try:
        return _Machine(persistent_load or no_persistent_ids).run(stream)
    except FastglowError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, MemoryError) as e:
        raise damaged(f"its pickle cannot be read ({type(e).__name__}: {show(str(e))})") from None
