"""Reads a pickle as data: an interpreter of the pickle opcodes that never imports or calls what a file names.

`pickle.Unpickler` does what the file tells it to: import names, call them, set attributes. A checkpoint needs
none of that. This reader runs the same stack machine, but names, objects and tensors become the records of
`fastglow.checkpoint.records`, and the few functions that checkpoints call are replaced by those of
`fastglow.checkpoint.calls`. Any other call is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any

from fastglow.errors import FastglowError

from .calls import admit, call, checked_key, members, new_object, require
from .opcodes import ByteStream, read_operations
from .records import Global, Inert, damaged, show

# A checkpoint with optimizer state has about 150,000 operations, a few microseconds each. An operation may create an
# object of a few dozen bytes, so the limit bounds the time and memory that a hostile file can ask for.
MAX_OPERATIONS = 1_000_000
# An operation may copy what earlier ones made (`list(x)`, `update(x)`): bound on the entries and bytes copied.
MAX_COPIED = 4_000_000
MAX_INT_BITS = 128


class _Machine:
    """The stack, the marks and the memo of one pickle."""

    def __init__(self, persistent_load: Callable[[Any], Any]):
        self.persistent_load = persistent_load
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.n_copied = 0

    def run(self, stream: ByteStream) -> Any:
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
        # Evaluating the argument may replace `self.stack`, so it is looked up here.
        self.stack.append(value)

    def count_copies(self, *values: Any) -> None:
        """Called before `values` are copied: bounds what repeated copies take."""
        self.n_copied += sum(len(value) for value in values if isinstance(value, Sized))
        if self.n_copied > MAX_COPIED:
            raise FastglowError(f"copies more than {MAX_COPIED:,} entries of its own: not a checkpoint of weights")

    def pop_marked(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def pop_mark(self, _argument: object) -> None:
        self.pop_marked()

    def mark(self, _argument: object) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def integer(self, value: int) -> None:
        if not isinstance(value, bool) and value.bit_length() > MAX_INT_BITS:
            raise damaged(f"an integer of {value.bit_length()} bits")
        self.stack.append(value)

    def pop(self, _argument: object) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_marked()

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def memoize(self, _argument: object) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def pack(self, size: int) -> None:
        items = [self.stack.pop() for _ in range(size)]
        self.stack.append(tuple(reversed(items)))

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, Inert):  # the items of an object that inherits from list are not needed
            require(list, target, "a list").extend(items)

    def set_items(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, Inert):
            items = require(dict, target, "a dictionary")
            items.update((checked_key(key), value) for key, value in zip(flat[::2], flat[1::2], strict=True))

    def make_dict(self, _argument: object) -> None:
        items = self.pop_marked()
        self.stack.append({})
        self.set_items(items)

    def add_items(self, items: list[Any]) -> None:
        require(set, self.stack[-1], "a set").update(members(items))

    def global_name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(admit(module, name))

    def stack_global(self, _argument: object) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(admit(module, name))

    def call(self, function: Any, args: Any) -> None:
        """REDUCE and the like, by the replacements in `fastglow.checkpoint.calls`."""
        name = require(Global, function, "what the file calls").name
        args = require(tuple, args, "the arguments of a call")
        self.count_copies(args, *args)
        self.stack.append(call(name, args))

    def reduce(self, _argument: object) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.call(function, args)

    def instance(self, argument: str) -> None:
        args = tuple(self.pop_marked())
        module, _, name = argument.partition(" ")
        self.call(admit(module, name), args)

    def construct(self, _argument: object) -> None:
        cls, *args = self.pop_marked()
        self.call(cls, tuple(args))

    def new_object(self, _argument: object) -> None:
        args, cls = require(tuple, self.stack.pop(), "the arguments of a class"), self.stack.pop()
        self.count_copies(args, *args)
        self.stack.append(new_object(cls, *args))

    def new_object_ex(self, _argument: object) -> None:
        _kwargs, _args, cls = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append(new_object(cls))

    def build(self, _argument: object) -> None:
        """Records an object's state; no model needs the state of a dictionary or tensor."""
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, Inert):
            return
        parts = state[:2] if isinstance(state, tuple) else (state,)  # (__dict__, __slots__)
        self.count_copies(*parts)
        for part in parts:
            if isinstance(part, dict):
                target.state.update(part)

    def persistent_id(self, _argument: object) -> None:
        self.stack.append(self.persistent_load(self.stack.pop()))


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = (
    *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
Action = Callable[[_Machine, Any], None]


def _push_constant(value: object) -> Action:
    return lambda m, _: m.push(value)


_ACTIONS: dict[str, Action] = {
    **{name: _push_constant(value) for name, value in _CONSTANTS.items()},
    **dict.fromkeys(_LITERALS, _Machine.push),
    "PROTO": lambda m, _: None,
    "FRAME": lambda m, _: None,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
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
    "FROZENSET": lambda m, _: m.push(members(m.pop_marked())),
    "APPEND": lambda m, _: m.append([m.stack.pop()]),
    "APPENDS": lambda m, _: m.append(m.pop_marked()),
    "SETITEM": lambda m, _: m.set_items([m.stack.pop(), m.stack.pop()][::-1]),
    "SETITEMS": lambda m, _: m.set_items(m.pop_marked()),
    "ADDITEMS": lambda m, _: m.add_items(m.pop_marked()),
    "GLOBAL": _Machine.global_name,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "INST": _Machine.instance,
    "OBJ": _Machine.construct,
    "NEWOBJ": _Machine.new_object,
    "NEWOBJ_EX": _Machine.new_object_ex,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent_id,
}


def read_pickle(stream: ByteStream, persistent_load: Callable[[Any], Any] | None = None) -> Any:
    """The object that the next pickle of `stream` describes, as plain data and `fastglow.checkpoint.records`.

    Args:
        stream: bytes in memory or a memory map, whose length bounds every read; left at the end of the pickle.
        persistent_load: maps persistent ids (torch's references to storages) to objects.

    Raises:
        FastglowError: the pickle calls or names something that no checkpoint needs, or is damaged.
    """

    def no_persistent_ids(_id: object) -> Any:
        raise damaged("an unexpected reference to a storage")

    try:
        return _Machine(persistent_load or no_persistent_ids).run(stream)
    except FastglowError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, MemoryError) as e:
        raise damaged(f"its pickle cannot be read ({type(e).__name__}: {show(str(e))})") from None
