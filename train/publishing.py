"""Makes finished shards a data set: its index, and dataset.json, which puts it in the place of the old one."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastglow.audio import MelConfig
from fastglow.errors import FastglowError
from fastglow.files import replacing

from .index import SPLITS, write_index
from .manifest import DESCRIPTION, Item, PreparedDataset
from .mapping import KINDS
from .shard_writer import ShardWriter
from .shards import MEL_DTYPES, VERSION, Entry, Head, Placed, Shard
from .sharing import remove_others


@dataclass(frozen=True)
class About:
    """What dataset.json says beside the names of files.

    Attributes:
        source: where the recordings are.
        audio: parameters of the log-mels.
        mel_dtype: of the log-mels, "float32" or "float16".
        text_cleaners: for training; None: not recorded.
        options: other options that determine samples and log-mels.
        rejected: clips that are left out, with reasons.
    """

    source: str
    audio: MelConfig
    mel_dtype: str = "float32"
    text_cleaners: Sequence[str] | None = None
    options: Mapping[str, Any] | None = None
    rejected: Sequence[tuple[str, str]] = ()

    def __post_init__(self) -> None:
        if self.mel_dtype not in MEL_DTYPES:
            raise FastglowError(f"mel_dtype={self.mel_dtype} must be one of {', '.join(MEL_DTYPES)}")


class Clip(NamedTuple):
    """A clip to write: samples int16 [N], log-mel [n_mel_channels, frames]; None: the data set will have none."""

    item: Item
    samples: np.ndarray | None = None
    mel: np.ndarray | None = None


def publish(
    folder: Path, shards: Sequence[Shard], splits: Mapping[str, Sequence[tuple[int, Placed]]], about: About
) -> set[str]:
    """Makes the shards the data set of the folder; what is not of it is left for `remove_others`.

    Several processes may do this at once with the same shards. Each file has the same contents then.

    Args:
        folder: of the data set.
        shards: all of them.
        splits: their clips in order, with the numbers of their shards.
        about: what else is said of them.

    Returns:
        The names of its files, without their suffixes.

    Raises:
        OSError: as the file system does. The old data set stays.
    """
    index = write_index(folder, splits)
    description = {
        "format": "fastglow data set",
        "version": VERSION,
        "source": about.source,
        "audio": about.audio.as_dict(),
        "mel_dtype": about.mel_dtype,
        "text_cleaners": None if about.text_cleaners is None else list(about.text_cleaners),
        "options": dict(about.options or {}),
        "counts": {split: len(splits[split]) for split in SPLITS},
        "index": index.name,
        "shards": [
            {"name": shard.path.name} | {kind: shard.file(kind).stat().st_size for kind in KINDS} for shard in shards
        ],
        "rejected": [{"item": name, "reason": reason} for name, reason in about.rejected],
    }
    text = format_description(description)
    path = folder / DESCRIPTION
    if not path.is_file() or path.read_bytes() != text.encode():
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return {index.stem, *(shard.path.name for shard in shards)}


def write_dataset(
    folder: str | os.PathLike, about: About, clips: Mapping[str, Iterable[Clip]], n_shards: int = 1
) -> PreparedDataset:
    """Writes clips that are there already as the data set of a folder.

    Args:
        folder: to fill; a data set there is replaced.
        about: what is said of them.
        clips: by split; they may be made on the way.
        n_shards: among which they are dealt out in turn.

    Raises:
        OSError: as the file system does.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    channels = about.audio.n_mel_channels
    order: dict[str, list[tuple[int, int]]] = {split: [] for split in SPLITS}
    writers: list[ShardWriter] = []
    try:
        for number in range(n_shards):
            writers.append(ShardWriter(folder, Head(VERSION, number, n_shards, channels, about.mel_dtype, "", "")))
        for split in SPLITS:
            for item, samples, mel in clips.get(split, ()):
                shard = sum(map(len, order.values())) % n_shards
                order[split].append((shard, writers[shard].n_clips))
                writers[shard].add(Entry(item.id, item.text, item.samples, item.frames), samples, mel)
        shards = [writer.finish() for writer in writers]
    finally:
        for writer in writers:
            writer.close()
    entries = [shard.entries() for shard in shards]
    placed = {split: [(shard, entries[shard][n]) for shard, n in order[split]] for split in SPLITS}
    remove_others(folder, publish(folder, shards, placed, about))
    return PreparedDataset.open(folder)


def format_description(values: dict[str, Any]) -> str:
    """The text of dataset.json, with the digest of the other values."""
    others = {name: x for name, x in values.items() if name != "digest"}
    return json.dumps({**others, "digest": digest_of(others)}, indent=2) + "\n"


def digest_of(values: Any) -> str:
    """Of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
