"""Checks every byte of a prepared data set."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from fastglow.errors import FastglowError

from .manifest import DESCRIPTION, PreparedDataset, read_description, shard_table
from .mapping import KINDS, mapped
from .publishing import digest_of
from .shards import Placed, Shard, ShardData

NAMED_CLIPS = 5


class Damage(NamedTuple):
    """A damaged file and what is wrong with it."""

    file: Path
    what: str


def find_damage(folder: str | os.PathLike, progress: bool = True) -> list[Damage]:
    """Reads all files of a prepared data set and compares their checksums.

    Args:
        folder: of the data set.
        progress: show a progress bar on standard error.

    Raises:
        FastglowError: the folder is not a prepared data set of this version.
    """
    folder = Path(folder)
    found: list[Damage] = []
    description = read_description(folder)
    if description is None:
        PreparedDataset.open(folder)  # says why
        raise FastglowError(f"{folder} holds a damaged manifest: run `fastglow prepare` again")
    if description.get("digest") != digest_of({name: x for name, x in description.items() if name != "digest"}):
        found.append(Damage(folder / DESCRIPTION, "is damaged"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for values in tqdm(shard_table(description), unit="shard", disable=not progress):
            found += _of_shard(folder / values["name"], {kind: values[kind] for kind in KINDS}, pool)
    if not found:  # else it may complain of the same
        try:
            PreparedDataset.open(folder)
        except FastglowError as error:
            found.append(Damage(folder / str(description.get("index")), str(error)))
    return found


def _of_shard(path: Path, sizes: dict[str, int], pool: ThreadPoolExecutor) -> list[Damage]:
    found: list[Damage] = []
    for kind, size in sizes.items():
        file = path.with_name(f"{path.name}.{kind}")
        n_bytes = file.stat().st_size if file.is_file() else None
        try:
            mapped(file)
        except FileNotFoundError:
            pass
        except OSError as error:
            found.append(Damage(file, f"cannot be read: {error.strerror}"))
            continue
        if n_bytes != size:
            found.append(Damage(file, "is missing" if n_bytes is None else f"has {n_bytes} bytes, must have {size}"))
    clips = path.with_name(f"{path.name}.clips")
    shard = Shard.read(clips)
    try:
        entries = [] if shard is None else shard.entries()
    except (OSError, ValueError):
        shard = None
    if shard is None:
        return [*found, Damage(clips, "is damaged" if clips.exists() else "is missing")]
    data = ShardData(shard)
    for kind in KINDS:
        whole = pool.map(lambda placed, kind=kind: data.is_whole(placed, (kind,)), entries)
        damaged = [placed for placed, is_whole in zip(entries, whole, strict=True) if not is_whole]
        if damaged and shard.file(kind) not in {damage.file for damage in found}:
            found.append(Damage(shard.file(kind), f"is damaged in {_names(damaged)}"))
    return found


def _names(clips: Sequence[Placed]) -> str:
    names = ", ".join(clip.entry.id for clip in clips[:NAMED_CLIPS])
    others = f" and {len(clips) - NAMED_CLIPS} others" if len(clips) > NAMED_CLIPS else ""
    return f"{len(clips)} {'clip' if len(clips) == 1 else 'clips'}: {names}{others}"
