"""Calls of `python -m bench.voice`, and what it found."""

from pathlib import Path

from fastglow.errors import FastglowError

from .running import PYTHON, Command
from .work import read_json

COMMAND = (*PYTHON, "bench.voice")


def on_texts(checkpoint: Path, texts: Path, out: Path) -> Command:
    """A checkpoint speaks the sentences of a file of id|text, and the recogniser writes them down."""
    return [*COMMAND, str(checkpoint), "--texts", str(texts), "--out", str(out)]


def on_recordings(voice: Path, speech: Path, ids: Path, out: Path) -> Command:
    """A voice beside the recordings of a data set in LJ-Speech layout, of the ids in a file."""
    data = ("--metadata", str(speech / "metadata.csv"), "--wavs", str(speech / "wavs"), "--ids", str(ids))
    return [*COMMAND, str(voice), *data, "--out", str(out)]


def report_in(out: Path) -> Path:
    return out / "report.json"


def word_error(out: Path) -> float | None:
    """The part of the words that the recogniser got wrong; None: not measured yet.

    Raises:
        FastglowError: the report does not say it.
    """
    report = read_json(report_in(out))
    if report is None:
        return None
    error = report.get("word_error") if isinstance(report, dict) else None
    if not isinstance(error, float | int):
        raise FastglowError(f"{report_in(out)} has no word_error: remove {out}")
    return float(error)
