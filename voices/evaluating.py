"""Calls of `python -m bench.voice`, and what it found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastglow.errors import FastglowError

from .running import PYTHON, Command
from .work import read_json

COMMAND = (*PYTHON, "bench.voice")


def on_texts(checkpoint: Path, texts: Path, out: Path) -> Command:
    """A checkpoint speaks the sentences of a file of id|text, and the recogniser writes them down."""
    return [*COMMAND, str(checkpoint), "--texts", str(texts), "--out", str(out)]


def on_recordings(voice: Path, speech: Path, ids: Path, out: Path) -> Command:
    """A voice beside the recordings of a data set in LJ-Speech layout, of the ids in a file."""
    return [*COMMAND, str(voice), *_recordings(speech, ids), "--out", str(out)]


def on_copies(tacotron2: Path, waveglow: Path, speech: Path, ids: Path, out: Path) -> Command:
    """A WaveGlow copies recordings; the Tacotron 2 predicts mels beside them."""
    models = (str(tacotron2), "--waveglow", str(waveglow), "--vocoder", "waveglow")
    return [*COMMAND, *models, *_recordings(speech, ids), "--copies-only", "--out", str(out)]


def _recordings(speech: Path, ids: Path) -> tuple[str, ...]:
    return "--metadata", str(speech / "metadata.csv"), "--wavs", str(speech / "wavs"), "--ids", str(ids)


def report_in(out: Path) -> Path:
    return out / "report.json"


def word_error(out: Path) -> float | None:
    """The part of the words that the recogniser got wrong; None: not measured yet.

    Raises:
        FastglowError: the report does not say it.
    """
    return _number(out, "word_error", lambda report: report["word_error"])


def distance(out: Path) -> float | None:
    """The log-magnitude distance of a WaveGlow's copies; None: not measured yet.

    Raises:
        FastglowError: the report does not say it.
    """
    return _number(out, "distance", lambda report: report["voices"][0]["copies"]["waveglow"]["log_magnitude"])


def _number(out: Path, name: str, of: Callable[[Any], Any]) -> float | None:
    report = read_json(report_in(out))
    if report is None:
        return None
    try:
        return float(of(report))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise FastglowError(f"{report_in(out)} has no {name}: remove {out}") from error
