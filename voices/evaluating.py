"""Calls of `python -m bench.voice`, and what it found."""

from pathlib import Path

from fastglow.errors import FastglowError

from .running import PYTHON, Command
from .work import read_json

COMMAND = (*PYTHON, "bench.voice")


def on_texts(voice: Path, texts: Path, out: Path) -> Command:
    """Speaks the sentences of a file of id|text and recognises them."""
    return [*COMMAND, str(voice), "--texts", str(texts), "--out", str(out)]


def on_recordings(voice: Path, speech: Path, ids: Path, out: Path) -> Command:
    """Compares with the recordings of a data set, those of the ids in a file."""
    metadata, wavs = speech / "metadata.csv", speech / "wavs"
    return [
        *COMMAND,
        str(voice),
        "--metadata",
        str(metadata),
        "--wavs",
        str(wavs),
        "--ids",
        str(ids),
        "--out",
        str(out),
    ]


def report_in(out: Path) -> Path:
    return out / "report.json"


def word_error(out: Path) -> float | None:
    """The part of the words that the recogniser understood wrongly; None: not measured yet.

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
