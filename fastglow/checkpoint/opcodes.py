"""The operations of a pickle, one after the other, with their arguments."""

from __future__ import annotations

import codecs
import pickletools
import re
from collections.abc import Callable, Iterator
from typing import Any, Protocol

# Escapes that Python writes into a string; its decoder warns of any other. No text matches in two ways, so matching
# takes one pass.
_ESCAPED = re.compile(
    rb"""(?:[^\\]|\\(?:[\n\\'"abfnrtv]|x[0-9a-fA-F]{2}|[0-3][0-7]{2}|[0-7]{1,2}(?![0-7])))*""", re.DOTALL
)


_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}


class ByteStream(Protocol):
    """The part of the file interface that reading a pickle needs; `mmap.mmap` has it, too."""

    def read(self, n: int, /) -> bytes: ...
    def readline(self) -> bytes: ...


def read_operations(stream: ByteStream) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    """(operation, its argument) up to the end of the stream; the caller stops at STOP.

    Raises:
        ValueError: an unknown operation, or an argument that is cut short or malformed. Never warns.
    """
    while code := stream.read(1):
        opcode = _OPCODES.get(code.decode("latin-1"))
        if opcode is None:
            raise ValueError(f"operation {code!r} is unknown")
        if opcode.name in _READERS:
            yield opcode, _READERS[opcode.name](stream)
        elif opcode.arg is not None:
            # pickletools' readers call `read` and `readline` only; their type asks for a whole IO[bytes].
            yield opcode, opcode.arg.reader(stream)  # type: ignore[arg-type]
        else:
            yield opcode, None


def _line(stream: ByteStream) -> bytes:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise ValueError("a line has no end")
    return line[:-1]


def _names(n_lines: int) -> Callable[[ByteStream], str]:
    """Reads names, one per line and without escapes as pickle.Unpickler does, and joins them by spaces."""
    return lambda stream: " ".join(_line(stream).decode("utf-8") for _ in range(n_lines))


def _quoted(stream: ByteStream) -> str:
    line = _line(stream)
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[:1] != line[-1:]:
        raise ValueError("a string has no quotes")
    if not _ESCAPED.fullmatch(line[1:-1]):
        raise ValueError("a string has an unknown escape")
    return codecs.escape_decode(line[1:-1])[0].decode("ascii")


# pickletools reads these as Python source.
_READERS: dict[str, Callable[[ByteStream], str]] = {
    "STRING": _quoted,
    "GLOBAL": _names(2),
    "INST": _names(2),
    "PERSID": _names(1),
}
