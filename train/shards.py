"""A shard of a prepared data set: three files that never change, so that they can be mapped while others are made.

shard-00003-of-00008-0123456789ab.pcm     samples, int16
shard-00003-of-00008-0123456789ab.mel     log-mels, each [n_mel_channels, frames] in C order, float32 or float16
shard-00003-of-00008-0123456789ab.clips   what was made of which recording, a line a clip

Numbers are little-endian. In .pcm and .mel each clip begins at a multiple of 64 bytes and is filled up with zeros.
Lines of .clips are the CRC-32 of the rest in eight hexadecimal digits, a space, and JSON: first a `Head`, then an
`Entry` for each clip of the shard, also for those that are left out, then {"end": entries, "pcm": bytes, "mel": bytes}.
The clips stand in .pcm and .mel in the order of the lines. The name ends with the beginning of the SHA-256 of .clips,
which has the CRC-32 of every clip: other contents have another name.

While it is made, a shard has the hidden names .shard-00003-of-00008.*.partial, and .clips is a journal: a clip counts
once its line is whole.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from .mapping import KINDS, Extent, mapped, padded

VERSION = 2
MEL_DTYPES = {"float32": "<f4", "float16": "<f2"}
SHARD_CLIPS = 20_000  # a shard for each, unless their number is given
LONGEST = 2**40  # samples of a clip; keeps sums of sizes within int64

_NAME = re.compile(r"shard-(\d{5})-of-(\d{5})-([0-9a-f]{12})")
_INDEX = re.compile(r"dataset-[0-9a-f]{12}\.index")
_PARTIAL = re.compile(r"\.shard-\d{5}-of-\d{5}\.(pcm|mel|clips)\.partial")
_LINE_LIMIT = 2**24  # bytes


class Head(NamedTuple):
    """What a shard is made of.

    Attributes:
        version: of the format.
        shard, of: its number, from 0, and that of all.
        n_mel_channels, mel_dtype: of the log-mels; a key of MEL_DTYPES.
        options: digest of the options that determine samples and log-mels.
        clips: digest of its clips' ids and texts.
    """

    version: int
    shard: int
    of: int
    n_mel_channels: int
    mel_dtype: str
    options: str
    clips: str

    @property
    def name(self) -> str:
        return f"shard-{self.shard:05d}-of-{self.of:05d}"

    @classmethod
    def parse(cls, values: Any) -> "Head":
        """Raises ValueError."""
        head = _parse(cls, values, "iiiisss")
        if head.version != VERSION or head.mel_dtype not in MEL_DTYPES or not 0 <= head.shard < head.of:
            raise ValueError("a head of another version")
        return head


class Recording(NamedTuple):
    """A file as it was when its clip was made: path, bytes (-1: there was none), last change (ctime) [ns], SHA-256."""

    path: str = ""
    size: int = -1
    changed: int = 0
    digest: str = ""


class Entry(NamedTuple):
    """A clip. `pcm` and `mel` are the CRC-32 of its bytes, zeros behind them included; None: it has none."""

    id: str
    text: str
    samples: int = 0
    frames: int = 0
    pcm: int | None = None
    mel: int | None = None
    recording: Recording = Recording()
    reason: str | None = None  # for which it is left out

    @classmethod
    def parse(cls, values: Any) -> "Entry":
        """Raises ValueError."""
        entry = _parse(cls, values, "ssiinnrt")
        entry = entry._replace(recording=_parse(Recording, entry.recording, "siis"))
        if entry.reason is None and not 0 < entry.frames <= entry.samples < LONGEST:
            raise ValueError(f"samples={entry.samples} or frames={entry.frames} is out of range")
        if entry.reason is not None and not entry.pcm is entry.mel is None:
            raise ValueError("a clip that is left out has data")
        return entry

    def n_bytes(self, kind: str, head: Head) -> int:
        """Of its data, without the zeros."""
        if getattr(self, kind) is None:
            return 0
        itemsize = np.dtype(MEL_DTYPES[head.mel_dtype]).itemsize
        return 2 * self.samples if kind == "pcm" else self.frames * head.n_mel_channels * itemsize


_TYPES = {"s": (str,), "i": (int,), "n": (int, type(None)), "t": (str, type(None)), "r": (list,)}


def _parse(kind: Any, values: Any, types: str) -> Any:
    if not isinstance(values, list) or len(values) != len(types):
        raise ValueError(f"a line must have {len(types)} values")
    for value, letter in zip(values, types, strict=True):
        if type(value) not in _TYPES[letter]:
            raise ValueError(f"a value has the type {type(value).__name__}")
    return kind(*values)


class Placed(NamedTuple):
    """A clip and where its bytes begin; -1: it has none."""

    entry: Entry
    pcm: int
    mel: int


def format_line(values: Any) -> bytes:
    """A line of .clips."""
    body = json.dumps(values, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def whole_lines(file: BinaryIO) -> Iterator[tuple[bytes, Any]]:
    """The whole lines from the beginning of a file, with their values, up to the first that is damaged."""
    while (line := file.readline(_LINE_LIMIT))[-1:] == b"\n":
        if line[:9] != b"%08x " % zlib.crc32(line[9:-1]):
            return
        try:
            yield line, json.loads(line[9:])
        except (ValueError, RecursionError):
            return


@dataclass(frozen=True)
class Shard:
    """A finished shard; `path` is that of its files without their suffix."""

    path: Path
    head: Head

    def file(self, kind: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{kind}")

    def entries(self) -> list[Placed]:
        """Its clips.

        Raises:
            OSError, ValueError: .clips is missing or damaged.
        """
        digest, found, offsets, end = hashlib.sha256(), list[Placed](), dict.fromkeys(KINDS, 0), None
        with open(self.file("clips"), "rb") as file:
            for number, (line, values) in enumerate(whole_lines(file)):
                digest.update(line)
                if isinstance(values, dict):
                    end = values
                    break
                if number:
                    entry = Entry.parse(values)
                    found.append(place_clip(entry, self.head, offsets))
            if file.read(1) or end != {"end": len(found), **offsets} or digest.hexdigest()[:12] != self.path.name[-12:]:
                raise ValueError("it is damaged")
        return found

    def sizes(self, entries: Sequence[Placed]) -> dict[str, int]:
        """Bytes of the files with these clips, by kind."""
        return {
            kind: sum(padded(x.entry.n_bytes(kind, self.head)) for x in entries if getattr(x, kind) >= 0)
            for kind in KINDS
        }

    @classmethod
    def read(cls, file: Path) -> "Shard | None":
        """The shard of a .clips file; None if its head is damaged."""
        try:
            with open(file, "rb") as lines:
                head = Head.parse(next(whole_lines(lines), (b"", None))[1])
        except (OSError, ValueError):
            return None
        match = _NAME.fullmatch(file.stem)
        return cls(file.with_suffix(""), head) if match and file.stem.startswith(head.name) else None


def place_clip(entry: Entry, head: Head, offsets: dict[str, int]) -> Placed:
    """Where a clip begins, at `offsets` by kind, which are moved to its end."""
    begin = {}
    for kind in KINDS:
        begin[kind] = -1 if getattr(entry, kind) is None else offsets[kind]
        offsets[kind] += padded(entry.n_bytes(kind, head))
    return Placed(entry, **begin)


def shards_in(folder: Path) -> list[Shard]:
    """The finished shards, by name, whether they are of the data set or not."""
    return [shard for file in sorted(folder.glob("shard-*.clips")) if (shard := Shard.read(file)) is not None]


def is_of_dataset(file: Path) -> bool:
    """Whether a file has the name of an index or of a file of a finished shard."""
    is_shard = _NAME.fullmatch(file.stem) and file.suffix[1:] in (*KINDS, "clips")
    return bool(is_shard or _INDEX.fullmatch(file.name))


def is_partial(file: Path) -> bool:
    """Whether a file has the name of one of a shard that is not finished."""
    return _PARTIAL.fullmatch(file.name) is not None


class ShardData:
    """Reads the clips of a finished shard that may be damaged."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self._files: dict[str, np.ndarray | None] = {}
        for kind in KINDS:
            try:
                self._files[kind] = mapped(shard.file(kind))
            except OSError:
                self._files[kind] = None

    def is_whole(self, placed: Placed, kinds: Sequence[str] = KINDS) -> bool:
        """Whether its bytes are those that were written."""
        return all(self._extent(placed, kind).is_whole(self._files[kind]) for kind in kinds)

    def arrays(self, placed: Placed) -> dict[str, np.ndarray | None]:
        """Samples [N] as "pcm" and log-mel [n_mel_channels, frames] as "mel", of a clip that is whole; None: none."""
        found = {kind: self._extent(placed, kind).of(self._files[kind]) for kind in KINDS}
        if found["mel"] is not None:
            found["mel"] = found["mel"].reshape(self.shard.head.n_mel_channels, placed.entry.frames)
        return found

    def _extent(self, placed: Placed, kind: str) -> Extent:
        dtype = "<i2" if kind == "pcm" else MEL_DTYPES[self.shard.head.mel_dtype]
        size = placed.entry.n_bytes(kind, self.shard.head)
        return Extent(getattr(placed, kind), size, getattr(placed.entry, kind), dtype)
