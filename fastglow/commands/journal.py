"""Which job made which file, so that `fastglow synth --json-lines --resume` can leave it out."""

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from fastglow.errors import FastglowError

NAME = ".fastglow-jobs.jsonl"


class _Made(NamedTuple):
    job: str  # digests
    file: str


class Journal:
    """A file to which a line is appended for every finished job, in a folder that may move with its outputs.

    A run that is killed between writing an output and its line makes the output again. Several runs may append at once.

    Args:
        folder: holds the journal.
        resume: read what earlier runs have left.

    Raises:
        FastglowError: the journal cannot be written or read.
    """

    def __init__(self, folder: str, resume: bool):
        self.path = Path(folder, NAME)
        self._home = os.path.realpath(folder)
        try:
            self._file = open(self.path, "a+b", buffering=0)
            self._end_torn_line()
            self._made = self._read() if resume else {}
        except OSError as error:
            raise FastglowError(f"cannot write {self.path}: {error.strerror}: pass another -o FOLDER") from error

    def close(self) -> None:
        self._file.close()

    def has(self, job: str, output: Path) -> bool:
        """Whether the job of this digest has made the file that `output` is now."""
        made = self._made.get(self._key(output))
        return made is not None and made.job == job and output.is_file() and made.file == _digest(output)

    def add(self, job: str, output: Path) -> None:
        """Notes that the job of this digest has made `output`. Raises OSError."""
        entry = {"out": self._key(output), **_Made(job, _digest(output))._asdict()}
        # One write, so that lines of several runs do not mix.
        self._file.write(json.dumps(entry).encode() + b"\n")

    def _key(self, output: Path) -> str:
        return os.path.relpath(os.path.realpath(output), self._home)

    def _end_torn_line(self) -> None:
        """A run that was killed, or a full disk, may have left the last line without its end."""
        if self._file.seek(0, os.SEEK_END):
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")

    def _read(self) -> dict[str, _Made]:
        made = {}
        self._file.seek(0)
        for line in self._file:
            try:
                entry = json.loads(line)
                made[entry["out"]] = _Made(entry["job"], entry["file"])
            except (ValueError, TypeError, KeyError):  # torn, or not ours
                continue
        return made


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()
