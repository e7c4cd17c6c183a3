"""Frames of MP3 files, and their number where no header has it."""

from __future__ import annotations

import io
from pathlib import Path

_KILOBITS = {
    1: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_HERTZ = (44100, 48000, 32000)
_CHECKSUM, _PADDING, _MONO = 0x01, 0x02, 0xC0  # in the second (set: none), third and fourth byte of a header
_ROOM = 64  # bytes that a frame needs for the number of frames


def counts_mp3_frames(path: Path) -> bool:
    """Whether an MP3 stores its number of frames; otherwise libsndfile estimates it from the size of the first."""
    with open(path, "rb") as file:
        file.seek(_id3_bytes(file.read(10)))
        first_frame = file.read(256)
    position = max(first_frame.find(name) for name in (b"Xing", b"Info"))
    return position >= 0 and int.from_bytes(first_frame[position + 4 : position + 8], "big") & 1 == 1


def with_frame_count(path: Path) -> io.BytesIO | None:
    """A copy of an MP3 that does not store its number of frames, behind a frame that does.

    None for other files, and if other data than an ID3v1 tag stands between the frames or behind them.
    """
    with open(path, "rb") as file:
        file.seek(_id3_bytes(file.read(10)))
        first = file.read(4)
        if not mp3_frame_bytes(first) or counts_mp3_frames(path):
            return None
        data = first + file.read()
    end = n_frames = 0
    while size := mp3_frame_bytes(data[end : end + 4]):
        if end + size > len(data):
            break
        end += size
        n_frames += 1
    rest = data[end:].rstrip(b"\0")
    if not n_frames or not size and len(rest) > 3 and not rest.startswith(b"TAG"):
        return None
    return io.BytesIO(_counting_frame(first, n_frames) + data[:end])


def mp3_frame_bytes(header: bytes) -> int:
    """The length of a frame of layer III that begins with these 4 bytes (ISO 11172-3, 13818-3), 0 if none does."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0
    version_bits, kilobits, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version_bits == 1 or kilobits in (0, 15) or rate == 3:
        return 0
    version = _version(header)
    hertz = _HERTZ[rate] // {3: 1, 2: 2, 0: 4}[version_bits]
    samples = {1: 1152, 2: 576}[version]
    return samples * _KILOBITS[version][kilobits - 1] * 125 // hertz + bool(header[2] & _PADDING)


def _counting_frame(header: bytes, n_frames: int) -> bytes:
    """A frame for files whose frames have such headers, as LAME writes it."""
    second, third, fourth = header[1] | _CHECKSUM, header[2] & ~_PADDING, header[3]
    candidates = (bytes((0xFF, second, third & 0x0F | kilobits << 4, fourth)) for kilobits in range(1, 15))
    head = next(candidate for candidate in candidates if mp3_frame_bytes(candidate) >= _ROOM)
    is_mono = fourth & _MONO == _MONO
    side_information = {(1, True): 17, (1, False): 32, (2, True): 9, (2, False): 17}[_version(header), is_mono]
    count = b"Xing" + (1).to_bytes(4, "big") + n_frames.to_bytes(4, "big")
    return (head + bytes(side_information) + count).ljust(mp3_frame_bytes(head), b"\0")


def _version(header: bytes) -> int:
    """1 for MPEG-1, 2 for MPEG-2 and 2.5."""
    return 1 if header[1] >> 3 & 3 == 3 else 2


def _id3_bytes(head: bytes) -> int:
    """The length of an ID3v2 tag, 0 if a file's first 10 bytes begin none."""
    if not head.startswith(b"ID3") or len(head) < 10:
        return 0
    return 10 + sum(byte << 7 * i for i, byte in enumerate(reversed(head[6:])))
