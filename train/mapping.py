"""Views of the bytes of clips in files that are mapped into memory, which processes share."""

import mmap
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

KINDS = ("pcm", "mel")
ALIGNMENT = 64  # bytes: a line of a processor's cache


def padded(n_bytes: int) -> int:
    """Up to where the next clip begins."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def mapped(path: Path) -> np.ndarray:
    """A file as read-only uint8 [bytes], without reading it. Raises OSError."""
    with open(path, "rb") as file:
        if not file.seek(0, 2):
            return np.empty(0, np.uint8)  # which cannot be mapped
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


class Extent(NamedTuple):
    """Where an array is in a file: first byte (-1: there is no array), bytes, CRC-32 up to the next, dtype."""

    begin: int
    size: int
    crc: int | None
    dtype: str

    def is_whole(self, file: np.ndarray | None) -> bool:
        """Whether the file, mapped, has the bytes that were written."""
        if self.begin < 0:
            return True
        end = self.begin + padded(self.size)
        return file is not None and end <= len(file) and zlib.crc32(file[self.begin : end].data) == self.crc

    def of(self, file: np.ndarray | None) -> np.ndarray | None:
        """The array, flat, a view of the mapped file."""
        if self.begin < 0 or file is None:
            return None
        return file[self.begin : self.begin + self.size].view(self.dtype)
