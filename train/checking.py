"""Checks every byte of a prepared data set."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from fastglow.errors import FastglowError

from .index import Index
from .manifest import DESCRIPTION, PreparedDataset, parse_description, read_text, shard_table
from .mapping import KINDS, mapped
from .publishing import format_description
from .shards import Placed, Shard, ShardData, is_of_dataset

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
    path = folder / DESCRIPTION
    text = read_text(path)
    description = parse_description(path, text)
    if description is None:
        PreparedDataset.open(folder)  # says why
        raise FastglowError(f"{folder} holds a damaged manifest: run `fastglow prepare` again")
    found: list[Damage] = []
    if text == format_description(description):
        shards = {folder / x["name"]: {kind: x[kind] for kind in KINDS} for x in shard_table(description)}
        indexes = [folder / str(description.get("index"))]
    else:
        found.append(Damage(path, "is damaged"))
        # Perhaps in a name or a size: check the files that are there.
        files = sorted(file for file in folder.iterdir() if is_of_dataset(file))
        shards = {file.with_suffix(""): {} for file in files if file.suffix != ".index"}
        indexes = [file for file in files if file.suffix == ".index"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for shard, sizes in tqdm(shards.items(), unit="shard", disable=not progress):
            found += _of_shard(shard, sizes, pool)
    for index in indexes:
        found += _of_index(index)
    if not found:  # else it would complain of the same
        try:
            PreparedDataset.open(folder)
        except FastglowError as error:
            found.append(Damage(indexes[0], str(error)))
    return found


def _of_index(path: Path) -> list[Damage]:
    try:
        Index(path).check_bytes()
    except OSError as error:
        return [_unreadable(path, error)]
    except ValueError:
        return [Damage(path, "is damaged")]
    return []


def _of_shard(path: Path, sizes: dict[str, int], pool: ThreadPoolExecutor) -> list[Damage]:
    """`sizes`: bytes of the files, by kind; empty: as .clips says."""
    found: list[Damage] = []
    clips = path.with_name(f"{path.name}.clips")
    shard = Shard.read(clips)
    try:
        entries = [] if shard is None else shard.entries()
    except (OSError, ValueError):
        shard = None
    if shard is not None:
        sizes = sizes or shard.sizes(entries)
    for kind in KINDS:
        file = path.with_name(f"{path.name}.{kind}")
        try:
            n_bytes = len(mapped(file))
        except OSError as error:
            found.append(_unreadable(file, error))
        else:
            size = sizes.get(kind, n_bytes)
            if n_bytes != size:
                found.append(Damage(file, f"has {n_bytes} bytes, must have {size}"))
    if shard is None:
        return [*found, Damage(clips, "is damaged" if clips.exists() else "is missing")]
    data = ShardData(shard)
    for kind in KINDS:
        whole = pool.map(lambda placed, kind=kind: data.is_whole(placed, (kind,)), entries)
        damaged = [placed for placed, is_whole in zip(entries, whole, strict=True) if not is_whole]
        if damaged and shard.file(kind) not in {damage.file for damage in found}:
            found.append(Damage(shard.file(kind), f"is damaged in {_names(damaged)}"))
    return found


def _unreadable(file: Path, error: OSError) -> Damage:
    return Damage(file, "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}")


def _names(clips: Sequence[Placed]) -> str:
    names = ", ".join(clip.entry.id for clip in clips[:NAMED_CLIPS])
    others = f" and {len(clips) - NAMED_CLIPS} others" if len(clips) > NAMED_CLIPS else ""
    return f"{len(clips)} {'clip' if len(clips) == 1 else 'clips'}: {names}{others}"
