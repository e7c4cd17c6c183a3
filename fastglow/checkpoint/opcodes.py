"""The operations of a pickle, one after the other, with their arguments."""

from __future__ import annotations

import codecs
import pickletools
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

# What follows a backslash where Python writes a string: on anything else its decoder warns. No text matches in two
# ways, so that a long one that does not match is found out in one pass.
_ESCAPED = re.compile(
    rb"""(?:[^\\]|\\(?:[\n\\'"abfnrtv]|x[0-9a-fA-F]{2}|[0-3][0-7]{2}|[0-7]{1,2}(?![0-7])))*""", re.DOTALL
)


def read_operations(stream: BinaryIO) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    """(operation, its argument) up to the end of the stream; the caller stops at STOP.

    Raises:
        ValueError: an unknown operation, or an argument that is cut short or malformed. Nothing is warned of.
    """
    while code := stream.read(1):
        opcode = pickletools.code2op.get(code.decode("latin-1"))
        if opcode is None:
            raise ValueError(f"operation {code!r} is unknown")
        read = _READERS.get(opcode.name)
        if read is None and opcode.arg is not None:
            read = opcode.arg.reader
        yield opcode, None if read is None else read(stream)


def _line(stream: BinaryIO) -> bytes:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise ValueError("a line without an end")
    return line[:-1]


def _names(n_lines: int) -> Callable[[BinaryIO], str]:
    """Reads names, a line each, and joins them by spaces; as for pickle.Unpickler, they have no escapes."""
    return lambda stream: " ".join(_line(stream).decode("utf-8") for _ in range(n_lines))


def _quoted(stream: BinaryIO) -> str:
    line = _line(stream)
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[:1] != line[-1:]:
        raise ValueError("a string without quotes")
    if not _ESCAPED.fullmatch(line[1:-1]):
        raise ValueError("a string with an unknown escape")
    return codecs.escape_decode(line[1:-1])[0].decode("ascii")


# pickletools reads these as Python source.
_READERS = {"STRING": _quoted, "GLOBAL": _names(2), "INST": _names(2), "PERSID": _names(1)}
