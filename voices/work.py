"""The folder that a recipe fills, such as runs/heart: where its parts are, and what they were made of."""

import hashlib
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from fastglow.checkpoint import inspect_checkpoint
from fastglow.errors import FastglowError
from fastglow.files import replacing
from fastglow.train.checkpointing import BEST, find_newest_checkpoint, numbered_checkpoints

from .recipe import Recipe

EXCLUDED = "excluded.txt"
"""Written by `python -m voices.screening`, in its folder."""


class Work:
    """Paths in the folder of a recipe.

    Attributes:
        recipe: what is made.
        speech: data set that it is made of.
        folder: of all other paths.
        screening: found clips to leave out.
        data: prepared data set.
        ends: the last checkpoint of each stage of a training.
        candidates: what the recogniser heard of checkpoints.
        voice: for `fastglow synth --voice`.
        report: on the voice.
    """

    def __init__(self, recipe: Recipe, speech: Path, folder: Path):
        self.recipe = recipe
        self.speech = speech
        self.folder = folder
        self.screening = folder / "screening"
        self.data = folder / "data"
        self.ends = folder / "ends"
        self.candidates = folder / "candidates"
        self.voice = folder / "voice"
        self.report = folder / "report"

    def run(self, model: str) -> Path:
        """The folder of a training."""
        return self.folder / model

    def chosen(self, model: str) -> Path:
        """The checkpoint that the voice is made of."""
        return self.folder / ("chosen.pt" if model == "tacotron2" else f"chosen_{model}.pt")

    @property
    def exclude(self) -> Path | None:
        """The list of clips to leave out."""
        return self.screening / EXCLUDED if self.recipe.screen else self.recipe.exclude

    @property
    def lexicon(self) -> Path | None:
        """A copy, which outlives the file that the recipe names."""
        return self.folder / Path(self.recipe.lexicon).name if self.recipe.lexicon else None


_iterations: dict[tuple[object, ...], int] = {}


def iterations_of(run: Path, model: str) -> int:
    """How long a run has been trained, by its newest undamaged checkpoint; 0 without one.

    Raises:
        FastglowError: all are damaged.
    """
    files = [*numbered_checkpoints(run), *run.glob(BEST)]
    key = tuple((path, path.stat().st_mtime_ns) for path in files)
    if key not in _iterations:  # reads the whole file
        found = find_newest_checkpoint(run, model)
        _iterations[key] = 0 if found is None else found.checkpoint["iteration"]
    return _iterations[key]


def iteration_of(checkpoint: Path) -> int | None:
    """After how many iterations a checkpoint was written; None if it is damaged."""
    try:
        return inspect_checkpoint(checkpoint).iteration
    except FastglowError:
        return None


def digest_of(file: Path) -> str:
    """Of its contents."""
    digest = hashlib.sha256()
    with open(file, "rb") as data:
        while part := data.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def keep(file: Path, name: Path) -> None:
    """Gives a file a further name, which other programs see with all its contents or not at all."""
    name.parent.mkdir(parents=True, exist_ok=True)
    temporary = name.with_name(f".{name.name}.{secrets.token_hex(4)}.tmp")
    try:
        os.link(file, temporary)
    except OSError:  # another file system, or one without links
        with replacing(name) as copy:
            shutil.copyfile(file, copy)
        return
    os.replace(temporary, name)
    temporary.unlink(missing_ok=True)  # os.replace leaves it where both are the same file


def write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """None if there is no such file, or a damaged one."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


class Origin:
    """What a product was made of, in a file beside it."""

    def __init__(self, product: Path):
        self.path = product.with_name(f".{product.name}.origin.json")

    def is_(self, values: Any) -> bool:
        return bool(read_json(self.path) == values)

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)

    def record(self, values: Any) -> None:
        write_json(self.path, values)
