"""The voices and numbers that a service is started with."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from fastglow.engine import Synthesizer
from fastglow.engine.remarks import FaultySpeechWarning, SilentTextWarning
from fastglow.errors import FastglowError
from fastglow.models.tacotron2 import DecoderStepLimitWarning
from fastglow.text.pauses import PauseMarkWarning
from fastglow.text.unspeakable import UnspeakableTextWarning
from fastglow.voices import DEFAULT_VOICE, Voice

REMARKS = (
    FaultySpeechWarning, SilentTextWarning, DecoderStepLimitWarning, PauseMarkWarning, UnspeakableTextWarning,
)  # fmt: skip


def load_voices(
    names: Sequence[str], device: str | None = None, dtype: torch.dtype | None = None
) -> dict[str, Synthesizer]:
    """Loads voices and does what first calls do.

    Args:
        names: each `VOICE`, a bundled one or a folder, which is then called as its voice.json says; or `NAME=VOICE`. A
            voice with several names is loaded once. Default: the bundled one.
        device, dtype: as for `Synthesizer.from_voice`.

    Raises:
        FastglowError: unknown voices, unreadable files, a name that is given twice.
    """
    loaded: dict[Voice, Synthesizer] = {}
    voices: dict[str, Synthesizer] = {}
    for given in names or [DEFAULT_VOICE]:
        name, is_named, where = given.partition("=")
        if not is_named or Path(given).exists():
            name, where = "", given
        voice = Voice.load(where)
        name = name or voice.name
        if name in voices:
            raise FastglowError(f"two voices are called {name!r}: name one of them, as in --voice other={where}")
        if voice not in loaded:
            loaded[voice] = Synthesizer.from_voice(voice, device, dtype)
            loaded[voice].warmup()
        voices[name] = loaded[voice]
    return voices


def ignore_remarks() -> None:
    """Warnings that quote texts have no place in a log, and Python keeps each of them: of clients' texts, for ever."""
    for category in REMARKS:
        warnings.simplefilter("ignore", category)


def check_options(
    max_batch: int | None, max_wait_ms: float, max_queue: int, max_characters: int, timeout: float
) -> None:
    """Raises FastglowError for a number that is out of range."""
    _check("max_batch", 1 if max_batch is None else max_batch, 1, 1024)
    _check("max_wait_ms", max_wait_ms, 0, 10_000)
    _check("max_queue", max_queue, 1, 4096)
    _check("max_characters", max_characters, 1, 10_000_000)
    _check("timeout", timeout, 0.001, 86_400)


def _check(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # false for nan
        raise FastglowError(f"{name}={value:g} must be from {least:g} to {most:g}")
