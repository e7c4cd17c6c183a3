"""The directory of a zip archive: names and positions of its records. Nothing is unpacked.

The format is PKWARE's APPNOTE.TXT, sections 4.3.12 to 4.3.16 and 4.5.3. Python's zipfile is not used because it
raises and warns in many ways on damaged files.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass

_END = struct.Struct("<4s4H2LH")
_END_64_LOCATOR = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LIMIT_16, _LIMIT_32 = 0xFFFF, 0xFFFFFFFF  # the value is elsewhere, in 64 bits
_MAX_COMMENT = 0xFFFF
_UTF_8 = 0x800


@dataclass(frozen=True)
class Entry:
    """One record.

    Attributes:
        name: with its folders.
        header_offset: position of its local header, in bytes.
        size: unpacked, in bytes.
        checksum: CRC-32 of the unpacked bytes.
        is_plain: neither compressed nor encrypted.
    """

    name: str
    header_offset: int
    size: int
    checksum: int
    is_plain: bool


def read_directory(data: mmap.mmap | bytes) -> dict[str, Entry]:
    """The records of an archive by name; the last one where several have the same name.

    Raises:
        ValueError: the directory cannot be read.
    """
    try:
        start, n_bytes, n_entries = _place(data)
        if start + n_bytes > len(data):
            raise ValueError("it reaches past the end of the file")
        return _entries(data[start : start + n_bytes], n_entries)
    except struct.error:
        raise ValueError("it is cut short") from None


def _place(data: mmap.mmap | bytes) -> tuple[int, int, int]:
    """(first byte, bytes, entries) of the directory."""
    end = data.rfind(b"PK\x05\x06", max(0, len(data) - _END.size - _MAX_COMMENT))
    if end < 0:
        raise ValueError("it is missing")
    *_, n_entries, n_bytes, start, _comment = _END.unpack_from(data, end)
    if n_entries == _LIMIT_16 or _LIMIT_32 in (n_bytes, start):
        locator = end - _END_64_LOCATOR.size
        if locator < 0:
            raise ValueError("it is cut short")
        magic, _disk, end_64, _n_disks = _END_64_LOCATOR.unpack_from(data, locator)
        if magic != b"PK\x06\x07" or end_64 > len(data) - _END_64.size:
            raise ValueError("its end is not where it should be")
        magic, *_, n_entries, n_bytes, start = _END_64.unpack_from(data, end_64)
        if magic != b"PK\x06\x06":
            raise ValueError("its end is not where it should be")
    return start, n_bytes, n_entries


def _entries(directory: bytes, n_entries: int) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    position = 0
    for _ in range(n_entries):
        (
            magic, _made_by, _needs, flags, method, _time, _date, checksum, packed, size,
            name_size, extra_size, comment_size, _disk, _internal, _external, offset,
        ) = _ENTRY.unpack_from(directory, position)  # fmt: skip
        if magic != b"PK\x01\x02":
            raise ValueError(f"entry {len(entries) + 1} of {n_entries} is damaged")
        name_start = position + _ENTRY.size
        extra_start = name_start + name_size
        position = extra_start + extra_size + comment_size
        name = directory[name_start:extra_start].decode("utf-8" if flags & _UTF_8 else "cp437")
        if _LIMIT_32 in (size, packed, offset):
            size, packed, offset = _in_64_bits(directory[extra_start : extra_start + extra_size], size, packed, offset)
        entries[name] = Entry(name, offset, size, checksum, method == 0 and not flags & 1)
    return entries


def _in_64_bits(extra: bytes, *numbers: int) -> list[int]:
    """`numbers`, where each 32-bit maximum is replaced by the next 64-bit value of the extra field."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<2H", extra)
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{numbers.count(_LIMIT_32)}Q", field))
            return [next(wide) if number == _LIMIT_32 else number for number in numbers]
    raise ValueError("a 64-bit size is missing")
