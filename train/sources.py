"""Reads the metadata.csv or filelist of a data set: its clips and texts."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastglow.errors import FastglowError
from fastglow.lines import read_lines

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".oga", ".aiff", ".aif", ".au", ".w64", ".caf")


@dataclass(frozen=True)
class Source:
    """A line of a data set, not yet checked."""

    id: str
    path: Path
    text: str


def read_sources(dataset: Path) -> list[Source]:
    """The lines of an LJ-Speech folder (metadata.csv and wavs/) or of a filelist of `path|text`.

    A filelist's paths are relative to its folder. In metadata.csv the last column is the text. White space around
    columns is ignored. Paths may have Windows' backslashes and, in metadata.csv, begin with wavs/. The suffix of a
    recording may differ in case or be left out.

    Raises:
        FastglowError: neither of them, a line without text, or a duplicate id.
    """
    if dataset.is_dir():
        filelist, is_lj = dataset / "metadata.csv", True
        if not filelist.is_file():
            raise FastglowError(
                f"{dataset} holds no metadata.csv: pass a folder in LJ-Speech layout or a filelist of path|text"
            )
    elif dataset.is_file():
        filelist, is_lj = dataset, False
    else:
        raise FastglowError(f"{dataset} does not exist: pass a folder in LJ-Speech layout or a filelist of path|text")
    folders = _Folders(filelist.parent / "wavs" if is_lj else filelist.parent)
    sources: list[Source] = []
    seen: dict[str, int] = {}  # line numbers by id
    for number, line in enumerate(read_lines(filelist), 1):
        if not line.strip():
            continue
        name, *texts = (column.strip() for column in line.split("|"))
        if not texts or not name:
            raise FastglowError(f"{filelist} line {number} has no name before or no text after a '|': write path|text")
        if len(texts) > 1 and not is_lj:
            raise FastglowError(f"{filelist} line {number} has {len(texts) + 1} columns: write path|text")
        relative = folders.with_slashes(name)
        if is_lj:
            relative = relative.removeprefix("./").removeprefix("wavs/")
            if Path(relative).name != relative:
                raise FastglowError(f"{filelist} line {number} names {name}: write the plain name of a file in wavs/")
        path = folders.find(relative)
        # A flat name, whatever the path's folders.
        item_id = "_".join(part for part in Path(_without_suffix(relative)).parts if part not in ("/", ".."))
        if item_id in seen:
            raise FastglowError(
                f"{filelist} line {number} names {name} a second time, after line {seen[item_id]}: "
                "every item needs its own name"
            )
        seen[item_id] = number
        sources.append(Source(item_id, path, texts[-1]))
    if not sources:
        raise FastglowError(f"{filelist} holds no lines: nothing to prepare")
    return sources


def read_exclusions(path: Path, sources: Sequence[Source]) -> dict[str, str]:
    """The clips that a file names, a line each, with their reasons: `id`, or `id|reason`.

    Lines that begin with # are comments, unless a clip is called so.

    Raises:
        FastglowError: it cannot be read, or names a clip that is not among `sources`.
    """
    known = {source.id for source in sources}
    reasons: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), 1):
        name, _, reason = (column.strip() for column in line.partition("|"))
        item_id = _without_suffix(name)
        if item_id in known:
            reasons[item_id] = f"excluded: {reason}" if reason else "excluded"
        elif name and not name.startswith("#"):
            raise FastglowError(f"{path} line {number} names {name}, which the data set has not: remove the line")
    return reasons


def _without_suffix(name: str) -> str:
    suffix = Path(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in AUDIO_SUFFIXES else name


class _Folders:
    """Finds recordings whose names have backslashes, or a suffix that is missing or differs in case."""

    def __init__(self, root: Path):
        self.root = root
        self.listings: dict[Path, dict[str, str]] = {}

    def with_slashes(self, name: str) -> str:
        """`name` with slashes for backslashes, unless a file with backslashes in its name exists."""
        return name if "\\" not in name or os.path.isfile(self.find(name)) else name.replace("\\", "/")

    def find(self, name: str) -> Path:
        """The path of the recording `name`, whether it exists or not."""
        path = self.root / name
        if os.path.isfile(path):
            return path
        if path.parent not in self.listings:
            self.listings[path.parent] = _names(path.parent)
        names = self.listings[path.parent]
        wanted = [_with_lower_suffix(path.name), *(path.name + suffix for suffix in AUDIO_SUFFIXES)]
        expected = path.name if path.suffix else f"{path.name}.wav"
        return path.with_name(next((names[key] for key in wanted if key in names), expected))


def _names(folder: Path) -> dict[str, str]:
    """Maps names with a lower-case suffix to the names in a folder; an exact match takes precedence."""
    try:
        return {_with_lower_suffix(name): name for name in sorted(os.listdir(folder))}
    except OSError:
        return {}


def _with_lower_suffix(name: str) -> str:
    suffix = Path(name).suffix
    return name.removesuffix(suffix) + suffix.lower()
