"""The sentences of an evaluation: metadata.csv in LJ Speech's layout, or a list of texts; and their recordings."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fastglow.errors import FastglowError
from fastglow.lines import read_lines

from .word_errors import words_of

SUFFIXES = (".wav", ".flac", ".ogg")


class Prompt(NamedTuple):
    """A sentence to speak."""

    id: str
    text: str  # as it is spoken: numbers and abbreviations written out


def read_prompts(path: Path) -> list[Prompt]:
    """Lines of `id|text`, `id|text|normalised text` (the last column counts), or of a text alone, named by its line.

    Raises:
        FastglowError: the file cannot be read, holds no lines, or an id twice.
    """
    prompts: dict[str, Prompt] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        columns = [column.strip() for column in line.split("|")]
        prompt = Prompt(columns[0] if len(columns) > 1 else f"line {number}", columns[-1])
        if prompt.id in prompts:
            raise FastglowError(f"{path} line {number} names {prompt.id} a second time: every line needs its own id")
        prompts[prompt.id] = prompt
    if not prompts:
        raise FastglowError(f"{path} holds no lines: write id|text")
    return list(prompts.values())


def choose(prompts: Sequence[Prompt], ids: Path | None, limit: int | None) -> list[Prompt]:
    """Those that a file names, one id a line, in its order; of these the first `limit`.

    Raises:
        FastglowError: an id without a prompt, none left, or one without words.
    """
    chosen = list(prompts)
    if ids is not None:
        by_id = {prompt.id: prompt for prompt in prompts}
        wanted = [line.partition("|")[0].strip() for line in read_lines(ids) if line.strip()]
        for name in wanted:
            if name not in by_id:
                raise FastglowError(f"{ids} names {name}, which the metadata lack: remove it")
        chosen = [by_id[name] for name in dict.fromkeys(wanted)]
    if not chosen:
        raise FastglowError(f"{ids} names no sentence: write one id a line")
    for prompt in chosen[:limit]:
        if not words_of(prompt.text):
            raise FastglowError(f"{prompt.id} has no words: write id|text, or leave it out with --ids")
    return chosen[:limit]


def find_recordings(prompts: Sequence[Prompt], folder: Path) -> list[Path]:
    """The recording of each prompt.

    Raises:
        FastglowError: a prompt has none.
    """
    return [_find(prompt.id, folder) for prompt in prompts]


def _find(name: str, folder: Path) -> Path:
    for suffix in SUFFIXES:
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return path
    raise FastglowError(f"{folder} has no recording of {name}: put {name}.wav, .flac or .ogg there")
