"""Checks the length that an audio file's header declares against the file.

libsndfile reads a truncated file as a shorter one, without an error.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fastglow.errors import FastglowError

# First bytes of a file -> its byte order, and the bytes allowed at offset 8.
_CHUNKED = {
    b"RIFF": ("<", (b"WAVE",)),
    b"RIFX": (">", (b"WAVE",)),
    b"RF64": ("<", (b"WAVE",)),
    b"BW64": ("<", (b"WAVE",)),
    b"FORM": (">", (b"AIFF", b"AIFC")),
}
_AU = {b".snd": ">", b"dns.": "<"}
# Sony's Wave64 names its chunks by 16-byte GUIDs; a chunk's size includes its header of 24 bytes.
_W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_W64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")
_UNCOMPRESSED = (1, 3, 0xFFFE)  # WAV's format tags
# Programs that write to a pipe cannot go back to fill in the length. ffmpeg leaves 0xFFFFFFFF, sox and others
# slightly less than 2 or 4 GiB, some 0.
_UNKNOWN_FROM = 0x7FFF0000
_UNKNOWN_FROM_IN_64_BITS = 2**63 - 1


@dataclass(frozen=True)
class _Audio:
    """Where a file keeps its samples."""

    start: int  # in bytes from the file's beginning
    size: int  # in bytes, according to the header
    is_known: bool  # False if that size stands for "unknown"
    frame_bytes: int  # 1 if frames have no fixed size


def check_complete(path: Path) -> None:
    """Raises FastglowError if a WAV, RF64, Wave64, AIFF, AU or Ogg file is shorter than its headers declare.

    Files of unknown length, of other formats or with unreadable headers pass.
    """
    with open(path, "rb") as file:
        if not _ogg_is_complete(file):
            raise FastglowError(f"{path}: is cut short: its last Ogg page is incomplete; copy or record it again")
        audio = _find_audio(file) or _find_audio_of_au(file) or _find_audio_of_w64(file)
        if audio is None or not audio.is_known:
            return
        present = file.seek(0, io.SEEK_END) - audio.start
    # The declared size may include part of a frame.
    if present // audio.frame_bytes < audio.size // audio.frame_bytes:
        raise FastglowError(
            f"{path}: is cut short: its header declares {audio.size} bytes of audio, the file has {present}; "
            "copy or record it again"
        )


def with_known_length(path: Path) -> io.BytesIO | None:
    """A copy of a file of unknown length that libsndfile reads to its end; None if it reads the file as it is.

    libsndfile takes a length of 0 literally, and accepts no unknown length in RF64.
    """
    with open(path, "rb") as file:
        audio = _find_audio(file)
        if audio is None or audio.is_known or 0 < audio.size <= 0xFFFFFFFF or _are_chunks(file, audio.start):
            return None
        file.seek(0)
        whole = bytearray(file.read())
    if whole[:4] in (b"RF64", b"BW64"):
        whole[:4] = b"RIFF"
    whole[audio.start - 4 : audio.start] = b"\xff" * 4
    return io.BytesIO(whole)


def _find_audio(file: BinaryIO) -> _Audio | None:
    file.seek(0)
    head = file.read(12)
    order, kinds = _CHUNKED.get(head[:4], ("", ()))
    if head[8:] not in kinds:
        return None
    frame_bytes, long_size = 1, None
    try:
        for name, start, size in _chunks(file, order, 12):
            if name == b"ds64":
                (long_size,) = struct.unpack("<8xQ", file.read(16))
            elif name == b"fmt ":
                tag, block_bytes = struct.unpack(f"{order}H10xH", file.read(14))
                frame_bytes = max(1, block_bytes) if tag in _UNCOMPRESSED else 1
            elif name in (b"data", b"SSND"):
                if size == 0xFFFFFFFF and long_size is not None:
                    return _Audio(start, long_size, 0 < long_size < _UNKNOWN_FROM_IN_64_BITS, frame_bytes)
                return _Audio(start, size, 0 < size < _UNKNOWN_FROM, frame_bytes)
    except struct.error:  # the header is truncated
        pass
    return None


def _find_audio_of_au(file: BinaryIO) -> _Audio | None:
    file.seek(0)
    head = file.read(12)
    if len(head) < 12 or head[:4] not in _AU:
        return None
    start, size = struct.unpack(f"{_AU[head[:4]]}4xII", head)
    return _Audio(start, size, 0 < size < _UNKNOWN_FROM, 1)


def _find_audio_of_w64(file: BinaryIO) -> _Audio | None:
    file.seek(0)
    if not file.read(40).startswith(_W64_RIFF):
        return None
    position = 40
    while True:
        file.seek(position)
        head = file.read(24)
        if len(head) < 24:
            return None
        size = int.from_bytes(head[16:], "little") - 24
        if head.startswith(_W64_DATA):
            return _Audio(position + 24, size, 0 < size < _UNKNOWN_FROM_IN_64_BITS - 24, 1)
        if not 0 <= size < _UNKNOWN_FROM:
            return None
        position += 24 + size + -size % 8


def _chunks(file: BinaryIO, order: str, position: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, start of the content, size of the content) of every chunk from `position` on."""
    while True:
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            return
        name, size = struct.unpack(f"{order}4sI", head)
        yield name, position + 8, size
        position += 8 + size + size % 2


def _are_chunks(file: BinaryIO, position: int) -> bool:
    """Whether the file consists of whole chunks from `position` on, without samples."""
    length = file.seek(0, io.SEEK_END)
    for name, start, size in _chunks(file, "<", position):
        if not (name.isascii() and name.decode("ascii").isprintable()) or start + size > length:
            return False
        position = start + size + size % 2
    return position >= length


def _ogg_is_complete(file: BinaryIO) -> bool:
    """False if the file is Ogg and ends inside a page."""
    position, length = 0, file.seek(0, io.SEEK_END)
    while position < length:
        file.seek(position)
        head = file.read(27)
        if not head.startswith(b"OggS"):
            return position == 0 or not b"OggS".startswith(head)
        segments = file.read(head[26]) if len(head) == 27 else b""
        if len(head) < 27 or len(segments) < head[26]:
            return False
        position += 27 + len(segments) + sum(segments)
    return position == length
