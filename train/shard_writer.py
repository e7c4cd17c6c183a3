"""Writes a shard clip by clip, so that it can be interrupted at any moment; see `shards` for the files."""

import hashlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from fastglow.errors import FastglowError
from fastglow.files import place

from .mapping import KINDS, padded
from .shards import MEL_DTYPES, Entry, Head, Shard, format_line, place_clip, whole_lines
from .sharing import locked


class ShardWriter:
    """Makes a shard, or goes on where another process was stopped.

    Args:
        folder: of the data set.
        head: what to make; what is there of anything else is dropped.
        keep: called with the number of each clip that is there and its entry, whether it is still right; from the
            first that is not, they are dropped.

    Attributes:
        n_clips: that are written.

    Raises:
        FastglowError: another process makes the same shard.
        OSError: as the file system does. The next writer goes on.
    """

    def __init__(self, folder: Path, head: Head, keep: Callable[[int, Entry], bool] = lambda number, entry: False):
        self.folder, self.head, self.n_clips = folder, head, 0
        self._offsets = dict.fromkeys(KINDS, 0)
        self._digest = hashlib.sha256()
        self._files: dict[str, BinaryIO] = {}
        try:
            self._files["clips"] = self._locked()
            self._take_back()
            for kind in KINDS:
                self._files[kind] = self._opened(kind)
            self._resume(keep)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def add(self, entry: Entry, samples: np.ndarray | None = None, mel: np.ndarray | None = None) -> None:
        """Appends a clip, whose samples [N] and log-mel [n_mel_channels, frames] are stored as this shard's types."""
        mel_type = MEL_DTYPES[self.head.mel_dtype]
        arrays = {
            "pcm": None if samples is None else np.ascontiguousarray(samples, "<i2"),
            "mel": None if mel is None else np.ascontiguousarray(mel, mel_type),
        }
        if samples is not None and samples.shape != (entry.samples,):
            raise ValueError(f"{entry.id}: samples {list(samples.shape)} must be [{entry.samples}]")
        if mel is not None and mel.shape != (self.head.n_mel_channels, entry.frames):
            raise ValueError(f"{entry.id}: mel {list(mel.shape)} must be {[self.head.n_mel_channels, entry.frames]}")
        sums: dict[str, int | None] = {}
        for kind, array in arrays.items():
            sums[kind] = None
            if array is not None:
                data = array.tobytes().ljust(padded(array.nbytes), b"\0")
                sums[kind] = zlib.crc32(data)
                _write(self._files[kind], data)
        entry = entry._replace(pcm=sums["pcm"], mel=sums["mel"])
        self._append(entry)
        place_clip(entry, self.head, self._offsets)
        self.n_clips += 1

    def finish(self) -> Shard:
        """Gives the files their names."""
        self._append({"end": self.n_clips, **self._offsets})
        shard = self._named(self._digest.hexdigest())
        for kind in (*KINDS, "clips"):  # .clips last: the shard is there once it is
            place(self._partial(kind), shard.file(kind))
        return shard

    def _named(self, digest: str) -> Shard:
        return Shard(self.folder / f"{self.head.name}-{digest[:12]}", self.head)

    def _append(self, values: Any) -> None:
        line = format_line(values)
        _write(self._files["clips"], line)
        self._digest.update(line)

    def _partial(self, kind: str) -> Path:
        return self.folder / f".{self.head.name}.{kind}.partial"

    def _opened(self, kind: str) -> BinaryIO:
        return os.fdopen(os.open(self._partial(kind), os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)

    def _locked(self) -> BinaryIO:
        try:
            return locked(self._partial("clips"))
        except BlockingIOError as error:
            raise FastglowError(
                f"another process makes {self.head.name} in {self.folder}: give each its own with --shard"
            ) from error

    def _take_back(self) -> None:
        """After a kill amid `finish`."""
        if all(self._partial(kind).exists() for kind in KINDS):
            return
        digest = hashlib.sha256()
        with open(self._partial("clips"), "rb") as journal:
            for line, _ in whole_lines(journal):
                digest.update(line)
        shard = self._named(digest.hexdigest())
        if shard.file("clips").exists():  # what is there may be in use
            return
        for kind in KINDS:
            if shard.file(kind).exists() and not self._partial(kind).exists():
                os.replace(shard.file(kind), self._partial(kind))

    def _resume(self, keep: Callable[[int, Entry], bool]) -> None:
        position = 0
        with open(self._partial("clips"), "rb") as journal:
            for number, (line, values) in enumerate(whole_lines(journal)):
                try:
                    is_right = self._replay(number, values, keep)
                except ValueError:
                    is_right = False
                if not is_right:
                    break
                position += len(line)
                self._digest.update(line)
        for kind, end in (("clips", position), *self._offsets.items()):
            file = self._files[kind]
            file.truncate(end)
            file.seek(end)
        if position == 0:
            self._append(self.head)

    def _replay(self, number: int, values: Any, keep: Callable[[int, Entry], bool]) -> bool:
        """Takes a line of the journal; False if it is not right."""
        if number == 0:
            return Head.parse(values) == self.head
        if isinstance(values, dict):  # the end, which is written again
            return False
        entry = Entry.parse(values)
        if not keep(number - 1, entry):
            return False
        # After a power cut, the line may be on the disk without the data.
        for kind in KINDS:
            size, file = padded(entry.n_bytes(kind, self.head)), self._files[kind]
            data = file.read(size) if file.tell() + size <= os.fstat(file.fileno()).st_size else b""
            if getattr(entry, kind) is not None and zlib.crc32(data) != getattr(entry, kind):
                return False
        place_clip(entry, self.head, self._offsets)
        self.n_clips += 1
        return True


def _write(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
