"""Reads named members of a tar archive, plain or compressed with gzip, into memory. Nothing is written to the disk.

The format is POSIX.1-2001's ustar, with GNU's binary sizes. Python's tarfile is not used because it raises in many
ways on damaged files, and because it follows what an archive says about paths and links.
"""

from __future__ import annotations

import gzip
import mmap
import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from fastglow.errors import FastglowError

from .records import damaged, show

GZIP_MAGIC = b"\x1f\x8b"
_BLOCK = 512
_PIECE = 2**20
_REGULAR = (b"0", b"\x00")
# Weights hardly compress. A file that unpacks to more than this many times its size is made to fill the memory.
_MAX_RATIO = 10


class NotTar(FastglowError):
    """The file, or what a gzip file unpacks to, is no tar archive."""


def is_tar(block: bytes) -> bool:
    """Whether an archive begins with these bytes."""
    return block[257:262] == b"ustar"


def read_members(file: BinaryIO, names: tuple[str, ...]) -> dict[str, mmap.mmap]:
    """The contents of those members that the archive holds; of two with one name, the later.

    Args:
        file: the open archive, at any position.
        names: without folders; "./NAME" in an archive is NAME too.

    Raises:
        NotTar: not a tar archive.
        FastglowError: damaged or truncated, or it unpacks to far more than its size.
    """
    n_bytes = os.fstat(file.fileno()).st_size
    file.seek(0)
    compressed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    file.seek(0)
    if not compressed:
        return _read(_Stream(file, n_bytes), names)
    most = _MAX_RATIO * n_bytes + _PIECE
    with gzip.GzipFile(fileobj=file) as unpacked:
        stream = _Stream(unpacked, most)
        try:
            return _read(stream, names)
        except (EOFError, zlib.error, gzip.BadGzipFile) as e:
            if stream.left == most:
                raise NotTar("not even the first header of a tar archive") from None
            raise damaged(f"its gzip data end early or are wrong ({show(str(e))})") from None


class _Stream:
    """Reads forward; refuses to read more than `most` bytes."""

    def __init__(self, file: BinaryIO | gzip.GzipFile, most: int):
        self._file = file
        self.left = most

    def pieces(self, size: int, name: str) -> Iterator[bytes]:
        """The next `size` bytes."""
        if size > self.left:
            raise damaged(f"member {show(name)} declares {size:,} bytes, at most {self.left:,} can be left")
        while size:
            piece = self._file.read(min(size, _PIECE))
            if not piece:
                raise damaged(f"it ends inside member {show(name)}")
            size -= len(piece)
            self.left -= len(piece)
            yield piece

    def block(self) -> bytes:
        """The next header; empty at the end of the file."""
        block = self._file.read(_BLOCK)
        self.left -= len(block)
        if self.left < 0:
            raise damaged("it unpacks to far more bytes than weights do")
        return block


def _read(stream: _Stream, names: tuple[str, ...]) -> dict[str, mmap.mmap]:
    found: dict[str, mmap.mmap] = {}
    block = stream.block()
    if not is_tar(block):
        raise NotTar("not a tar archive")
    while block.strip(b"\x00"):
        if len(block) < _BLOCK or not _checksum_fits(block):
            raise damaged("a tar archive in which the header of a member is wrong")
        name = _text(block[345:500]) + "/" + _text(block[:100])
        size = _number(block[124:136])
        wanted = name.lstrip("/").removeprefix("./")
        if wanted in names and block[156:157] in _REGULAR and size:
            content = found[wanted] = _memory(stream, size, wanted)
            content.seek(0)
        else:
            for _ in stream.pieces(size, name):
                pass
        for _ in stream.pieces(-size % _BLOCK, name):
            pass
        block = stream.block()
    return found


def _memory(stream: _Stream, size: int, name: str) -> mmap.mmap:
    pieces = stream.pieces(size, name)
    first = next(pieces)  # the size is within bounds
    memory = mmap.mmap(-1, size)
    memory.write(first)
    for piece in pieces:
        memory.write(piece)
    return memory


def _text(field: bytes) -> str:
    return field.partition(b"\x00")[0].decode("utf-8", errors="replace")


def _number(field: bytes) -> int:
    """Octal digits, or from 8 GiB on GNU's binary number."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \x00")
    if digits.strip(b"01234567"):  # int() takes signs and underscores too
        raise damaged("a tar archive in which the header of a member is wrong")
    return int(digits or b"0", 8)


def _checksum_fits(block: bytes) -> bool:
    """Whether the header holds the sum of its bytes, its own eight counted as spaces."""
    try:
        return int(block[148:156].strip(b" \x00"), 8) == sum(block) - sum(block[148:156]) + 8 * ord(" ")
    except ValueError:
        return False
