"""The index of a prepared data set: where the samples and log-mel of each clip are, and its id and text.

dataset-0123456789ab.index has a header of 64 bytes (`_HEADER`: the letters "fastglow", version, CRC-32 of what
follows it, clips to train on, clips to validate, bytes of strings), a `Row` of 64 bytes for each clip, those to
train on first, and the strings in UTF-8: the id of each clip and then its text. Numbers are little-endian. The file is
mapped: processes share it, and a clip becomes a Python object only when it is asked for.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastglow.files import replacing

from .mapping import ALIGNMENT, KINDS, mapped
from .shards import LONGEST, VERSION, Placed

SPLITS = ("train", "validation")

_MAGIC = b"fastglow"
_HEADER = struct.Struct("<8sIIQQQ24x")
_CHECKED = 16  # where the bytes begin that the checksum is of
_ROW = struct.Struct("<QIIqqqqIIII")


class Row(NamedTuple):
    """A clip. `pcm` and `mel` are where its data begin in the files of its shard; -1: it has none."""

    strings: int  # where its id begins
    id_bytes: int
    text_bytes: int
    samples: int
    frames: int
    pcm: int
    mel: int
    shard: int
    pcm_crc: int
    mel_crc: int
    unused: int


_DTYPE = np.dtype(list(zip(Row._fields, ("<u8", "<u4", "<u4", *["<i8"] * 4, *["<u4"] * 4), strict=True)))


class Index:
    """Reads an index.

    Attributes:
        counts: clips of each split.
        rows: a structured array [clips], with the fields of `Row`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """

    def __init__(self, path: Path):
        self._file = mapped(path)
        if len(self._file) < _HEADER.size:
            raise ValueError(f"{path.name} has {len(self._file)} bytes, must have at least {_HEADER.size}")
        magic, version, self._crc, *counts, n_strings = _HEADER.unpack_from(self._file.data)
        if (magic, version) != (_MAGIC, VERSION):
            raise ValueError(f"{path.name} is not an index of version {VERSION}")
        n = sum(counts)
        self._strings = _HEADER.size + n * _ROW.size
        if len(self._file) != self._strings + n_strings:
            raise ValueError(f"{path.name} has {len(self._file)} bytes, must have {self._strings + n_strings}")
        self.name = path.name
        self.counts = dict(zip(SPLITS, counts, strict=True))
        self.rows = np.frombuffer(self._file, _DTYPE, n, _HEADER.size)

    def check_bytes(self) -> None:
        """Raises ValueError if the checksum is wrong."""
        if zlib.crc32(self._file[_CHECKED:].data) != self._crc:
            raise ValueError(f"{self.name} is damaged")

    def check(self, sizes: dict[str, list[int]], frame_bytes: int) -> None:
        """Checks all that is in it.

        Args:
            sizes: bytes of the files of each kind, by shard; multiples of ALIGNMENT.
            frame_bytes: of a frame of a log-mel.

        Raises:
            ValueError: it is damaged, or a clip lies outside of the files.
        """
        self.check_bytes()
        rows, n_strings = self.rows, len(self._file) - self._strings
        lengths = rows["id_bytes"].astype(np.int64) + rows["text_bytes"]
        right = (rows["strings"] <= n_strings) & (rows["strings"].astype(np.int64) + lengths <= n_strings)
        right &= (0 < rows["frames"]) & (rows["frames"] <= rows["samples"]) & (rows["samples"] < LONGEST)
        right &= rows["shard"] < len(sizes["pcm"])
        if right.all():
            for kind, count, unit in (("pcm", rows["samples"], 2), ("mel", rows["frames"], frame_bytes)):
                begin, end = rows[kind], np.array(sizes[kind], np.int64)[rows["shard"]]
                fits = (begin >= 0) & (begin % ALIGNMENT == 0) & (begin <= end) & (count <= (end - begin) // unit)
                right &= (begin == -1) | fits
        if not right.all():
            raise ValueError(f"{self.name} has a clip outside of the files: number {int(np.argmin(right))}")

    def row(self, number: int) -> Row:
        return Row._make(_ROW.unpack_from(self._file.data, _HEADER.size + number * _ROW.size))

    def strings(self, row: Row) -> tuple[str, str]:
        """Id and text."""
        begin = self._strings + row.strings
        data = self._file[begin : begin + row.id_bytes + row.text_bytes].tobytes()
        return data[: row.id_bytes].decode("utf-8", "replace"), data[row.id_bytes :].decode("utf-8", "replace")


def write_index(folder: Path, splits: Mapping[str, Sequence[tuple[int, Placed]]]) -> Path:
    """Writes the index of clips, given with the numbers of their shards, unless it is there; returns its path."""
    rows, strings, begin = bytearray(), bytearray(), 0
    for split in SPLITS:
        for shard, (entry, *places) in splits[split]:
            parts = [text.encode("utf-8", "backslashreplace") for text in (entry.id, entry.text)]
            sums = [getattr(entry, kind) or 0 for kind in KINDS]
            lengths = entry.samples, entry.frames
            rows += _ROW.pack(begin, *map(len, parts), *lengths, *places, shard, *sums, 0)
            strings += b"".join(parts)
            begin = len(strings)
    counts = [len(splits[split]) for split in SPLITS]
    unchecked = _HEADER.pack(_MAGIC, VERSION, 0, *counts, len(strings))
    crc = zlib.crc32(strings, zlib.crc32(rows, zlib.crc32(unchecked[_CHECKED:])))
    header = _HEADER.pack(_MAGIC, VERSION, crc, *counts, len(strings))
    digest = hashlib.sha256(header)
    digest.update(rows)
    digest.update(strings)
    path = folder / f"dataset-{digest.hexdigest()[:12]}.index"
    if not _holds(path, (header, rows, strings)):
        with replacing(path) as temporary, open(temporary, "wb") as file:
            for part in (header, rows, strings):
                file.write(part)
    return path


def _holds(path: Path, parts: Sequence[bytes | bytearray]) -> bool:
    try:
        if os.path.getsize(path) != sum(map(len, parts)):
            return False
        with open(path, "rb") as file:
            return all(file.read(len(part)) == part for part in parts)
    except OSError:
        return False
