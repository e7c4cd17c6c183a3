"""Voices under evaluation, and what they say."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fastglow.engine import Speech, Synthesizer
from fastglow.engine.remarks import FaultySpeechWarning, SilentTextWarning
from fastglow.models.tacotron2 import DecoderStepLimitWarning
from fastglow.voices import Voice

from .recognition import Pocketsphinx, Recogniser, as_pcm
from .word_errors import WordErrors, word_errors


def find_voice(name: str, waveglow: Path | None = None) -> Voice:
    """A bundled voice, a voice's folder, or a checkpoint of a Tacotron 2, which speaks through Griffin-Lim.

    Args:
        waveglow: a checkpoint in place of the voice's; None: its own, if it has one.

    Raises:
        FastglowError: there is no such voice.
    """
    path = Path(name)
    voice = Voice(tacotron2=path) if path.is_file() and path.name != "voice.json" else Voice.load(name)
    return voice if waveglow is None else replace(voice, waveglow=waveglow)


def speak(synthesizer: Synthesizer, text: str, seed: int) -> Speech:
    """Speech whose faults are to be counted, and are therefore no warnings."""
    with _faults_expected():
        return synthesizer.synthesize(text, seed)


def word_error(
    synthesizer: Synthesizer, texts: Sequence[str], seed: int = 1, recogniser: Recogniser | None = None
) -> WordErrors:
    """The recogniser's errors on a voice's speech of texts, each spoken with the same seed.

    Args:
        synthesizer: the voice.
        texts: as they are spoken, numbers written out.
        recogniser: default: `Pocketsphinx`.

    Raises:
        FastglowError: pocketsphinx is not installed.
    """
    recogniser = recogniser or Pocketsphinx()
    total = WordErrors()
    for text in texts:
        audio = speak(synthesizer, text, seed).audio
        total += word_errors(text, recogniser.hear(as_pcm(audio, synthesizer.audio.sampling_rate)))
    return total


@contextmanager
def _faults_expected() -> Iterator[None]:
    with warnings.catch_warnings():
        for category in (FaultySpeechWarning, SilentTextWarning, DecoderStepLimitWarning):
            warnings.simplefilter("ignore", category)
        yield
