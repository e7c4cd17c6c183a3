"""The prepared data set on disk, which `fastglow prepare` writes and training reads.

dataset.json             audio parameters, text cleaners, source, counts, clips left out with reasons, names and sizes
                         of the other files, and a digest of all this, which `verify` compares; written last: a data
                         set is there once it is, and the old one until then
dataset-<digest>.index   the clips, see `index`
shard-*                  their samples and log-mels, see `shards`
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np

from fastglow.audio import MelConfig
from fastglow.errors import FastglowError

from .index import SPLITS, Index, Row
from .mapping import ALIGNMENT, KINDS, Extent, mapped
from .shards import LONGEST, MEL_DTYPES, VERSION

DESCRIPTION = "dataset.json"


@dataclass(frozen=True)
class Item:
    """One clip. `samples` and `frames` are the lengths of the arrays; `row` is where the index has it, if known."""

    id: str
    text: str
    samples: int
    frames: int
    row: int = field(default=-1, compare=False, repr=False)

    def __post_init__(self) -> None:
        # There may be millions.
        if not type(self.id) is type(self.text) is str or not type(self.samples) is type(self.frames) is int:
            raise TypeError("id and text must be strings, samples and frames integers")
        if not 0 < self.frames <= self.samples < LONGEST:
            raise ValueError(f"samples={self.samples} or frames={self.frames} is out of range")

    def as_dict(self) -> dict[str, Any]:
        """What describes the clip in any data set."""
        return {name: value for name, value in asdict(self).items() if name != "row"}


class Items(Sequence[Item]):
    """Clips of an index, made into objects when they are asked for."""

    def __init__(self, index: Index, rows: range):
        self._index, self._rows = index, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> "Items": ...

    def __getitem__(self, index: int | slice) -> "Item | Items":
        if isinstance(index, slice):
            return Items(self._index, self._rows[index])
        number = self._rows[index]
        row = self._index.row(number)
        return Item(*self._index.strings(row), row.samples, row.frames, number)

    @property
    def samples(self) -> np.ndarray:
        """Samples of each clip, int64 [clips]."""
        return self._lengths("samples")

    @property
    def frames(self) -> np.ndarray:
        """Frames of each clip, int64 [clips]."""
        return self._lengths("frames")

    def _lengths(self, name: str) -> np.ndarray:
        rows = self._rows
        return self._index.rows[name][np.arange(rows.start, rows.stop, rows.step)].astype(np.int64)


class PreparedDataset:
    """A folder that `fastglow prepare` filled.

    Its files are mapped: processes share them, and may go on to read them while the folder is prepared again. It can be
    sent to another process, which maps them too.

    Attributes:
        folder: of the data set.
        audio: parameters of the log-mels.
        items: by split.
        text_cleaners: for training; None: not recorded.
        mel_dtype: of the log-mels, "float32" or "float16".
        description: dataset.json.
        verify: whether the checksum of a clip is compared when it is first read in a process.
    """

    items: dict[str, Sequence[Item]]

    @classmethod
    def open(cls, folder: str | os.PathLike, *, verify: bool = True) -> "PreparedDataset":
        """Maps the files.

        Raises:
            FastglowError: the folder was not completely prepared, by another version, or a file is missing, cut short
                or damaged. What is wrong with the samples or log-mel of a single clip is found when that is read.
        """
        path = Path(folder) / DESCRIPTION
        text = read_text(path)
        while True:
            try:
                return cls(Path(folder), _parse(path, text), verify)
            except FastglowError:
                # Another process may have put a new data set in the place of this one.
                before, text = text, read_text(path)
                if text == before:
                    raise

    def __init__(self, folder: Path, description: dict[str, Any], verify: bool, checked: bool = False):
        """See `open`. With `checked`, the index is that of a data set that was open before."""
        self.folder, self.description, self.verify = folder, description, verify
        with _damage_named(folder):
            self.audio = _audio(description["audio"])
            self.text_cleaners, self.mel_dtype = description.get("text_cleaners"), description["mel_dtype"]
            self._shards = shard_table(description)
            if self.mel_dtype not in MEL_DTYPES:
                raise ValueError(f"mel_dtype must be one of {', '.join(MEL_DTYPES)}")
            cleaners = self.text_cleaners
            if not (cleaners is None or isinstance(cleaners, list) and all(isinstance(name, str) for name in cleaners)):
                raise ValueError("text_cleaners must be a list of names")
            self._frame_bytes = self.audio.n_mel_channels * np.dtype(MEL_DTYPES[self.mel_dtype]).itemsize
            self._index = Index(folder / plain_name(description["index"]))
            sizes = {kind: [shard[kind] for shard in self._shards] for kind in KINDS}
            if not checked:
                self._index.check(sizes, self._frame_bytes)
            self._files = {
                kind: [_mapped(folder / f"{shard['name']}.{kind}", shard[kind]) for shard in self._shards]
                for kind in KINDS
            }
        self.items = dict(zip(SPLITS, self._all_items(), strict=True))
        self._verified = {kind: np.zeros(len(self._index.rows), bool) for kind in KINDS}
        self._rows_by_id: dict[str, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "description": self.description, "verify": self.verify}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Names have digests: files of these names have these contents, which have been checked.
        try:
            self.__init__(**state, checked=True)  # type: ignore[misc]
        except FastglowError as error:
            folder = state["folder"]
            if read_description(folder) == state["description"]:
                raise
            raise FastglowError(f"{folder} was prepared again while it was in use: start again") from error

    def mel(self, item: Item) -> np.ndarray:
        """Log-mel [n_mel_channels, frames] in the type of `mel_dtype`, a read-only view of the mapped file.

        Raises FastglowError: see `samples`.
        """
        return self._array("mel", item).reshape(self.audio.n_mel_channels, item.frames)

    def samples(self, item: Item) -> np.ndarray:
        """Samples int16 [samples], a read-only view of the mapped file.

        Raises:
            FastglowError: the data set has not this clip or has none of its samples, or they are damaged.
        """
        return self._array("pcm", item)

    @property
    def n_samples(self) -> int:
        """Of all clips."""
        return int(self._index.rows["samples"].sum())

    def _array(self, kind: str, item: Item) -> np.ndarray:
        number, row = self._find(item)
        if kind == "pcm":
            extent = Extent(row.pcm, 2 * row.samples, row.pcm_crc, "<i2")
        else:
            extent = Extent(row.mel, row.frames * self._frame_bytes, row.mel_crc, MEL_DTYPES[self.mel_dtype])
        file = self._files[kind][row.shard]
        array = extent.of(file)
        if array is None:
            what = "samples" if kind == "pcm" else "log-mel"
            raise FastglowError(f"{self.folder} has no {what} of {item.id}: it was not made by `fastglow prepare`")
        if self.verify and not self._verified[kind][number]:
            if not extent.is_whole(file):
                path = self.folder / f"{self._shards[row.shard]['name']}.{kind}"
                raise FastglowError(
                    f"{path} is damaged in the clip {item.id}: run `fastglow prepare` again, which makes it anew"
                )
            self._verified[kind][number] = True
        return array

    def _find(self, item: Item) -> tuple[int, Row]:
        """The row of a clip, which may have been made without knowing it, or in another data set."""
        number = item.row
        if not (0 <= number < len(self._index.rows) and self._index.strings(self._index.row(number))[0] == item.id):
            if self._rows_by_id is None:
                self._rows_by_id = {known.id: known.row for items in self._all_items() for known in items}
            number = self._rows_by_id.get(item.id, -1)
        row = self._index.row(number) if number >= 0 else None
        if row is None or (row.samples, row.frames) != (item.samples, item.frames):
            raise FastglowError(f"{self.folder} has no clip {item.id} of {item.samples} samples: pass one of its items")
        return number, row

    def _all_items(self) -> list[Items]:
        n, n_train = len(self._index.rows), self._index.counts["train"]
        return [Items(self._index, range(n_train)), Items(self._index, range(n_train, n))]


def read_text(path: Path) -> str:
    """dataset.json as it is. Raises FastglowError."""
    try:
        return path.read_bytes().decode()
    except FileNotFoundError as error:
        raise FastglowError(f"{path} is missing: run `fastglow prepare DATASET --out {path.parent}` first") from error
    except OSError as error:
        raise FastglowError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise _damage(path.parent, error) from error


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        description = json.loads(text)
        version = description.get("version", 1)
    except (ValueError, AttributeError, RecursionError) as error:
        raise _damage(path.parent, error) from error
    if version != VERSION:
        older = type(version) is not int or version < VERSION
        raise FastglowError(
            f"{path.parent} was prepared by {'an older' if older else 'a newer'} version of fastglow: "
            + ("run `fastglow prepare` again" if older else "update fastglow, or run `fastglow prepare` again")
        )
    return description


def read_description(folder: Path) -> dict[str, Any] | None:
    """dataset.json; None if there is none of this version."""
    path = folder / DESCRIPTION
    try:
        return parse_description(path, read_text(path))
    except FastglowError:
        return None


def parse_description(path: Path, text: str) -> dict[str, Any] | None:
    """The values of dataset.json; None if they are of no use."""
    try:
        description = _parse(path, text)
        shard_table(description)
        return description if isinstance(description["options"], dict) else None
    except (FastglowError, KeyError, TypeError, ValueError):
        return None


def _damage(folder: Path, error: Exception) -> FastglowError:
    reason = " ".join(str(error).split())[:200]
    return FastglowError(f"{folder} holds a damaged manifest ({reason}): run `fastglow prepare` again")


@contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise FastglowError(
            f"{error.filename} is missing: run `fastglow prepare` again, which makes it anew"
        ) from error
    except OSError as error:
        raise FastglowError(f"{error.filename or folder} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise _damage(folder, error) from error


def shard_table(description: dict[str, Any]) -> list[dict[str, Any]]:
    """The shards that dataset.json names: name, and bytes of the files of each kind.

    Raises:
        KeyError, TypeError, ValueError: it is damaged.
    """
    for shard in description["shards"]:
        plain_name(shard["name"])
        for kind in KINDS:
            if type(shard[kind]) is not int or not 0 <= shard[kind] < 2**62 or shard[kind] % ALIGNMENT:
                raise ValueError(f"{shard['name']}: {kind} is no size of a file")
    return description["shards"]


def plain_name(name: str) -> str:
    """Raises ValueError for a path that leads elsewhere."""
    if type(name) is not str or Path(name).name != name:
        raise ValueError(f"{name!r} is not the name of a file")
    return name


def _audio(values: Any) -> MelConfig:
    try:
        return MelConfig.from_dict(values)
    except FastglowError as error:
        raise ValueError(str(error)) from error


def _mapped(path: Path, size: int) -> np.ndarray:
    file = mapped(path)
    if len(file) != size:
        raise FastglowError(
            f"{path} has {len(file)} bytes, must have {size}: run `fastglow prepare` again, which makes it anew"
        )
    return file
