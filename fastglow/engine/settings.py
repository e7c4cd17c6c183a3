"""Audio parameters, text cleaners and lexicon of a synthesis: given, or from the models' checkpoints."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from fastglow.audio import MelConfig
from fastglow.checkpoint import TrainedWith, audio_differences, read_trained_with, trained_with
from fastglow.errors import FastglowError
from fastglow.models import Tacotron2, WaveGlow
from fastglow.text import Lexicon
from fastglow.text.cleaners import DEFAULT_CLEANERS
from fastglow.voices import AS_TRAINED, AsTrained, Voice


class OtherwiseTrainedWarning(UserWarning):
    """A setting of the synthesis contradicts the training of its models."""


@dataclass(frozen=True)
class Settings:
    """The settings of a synthesis."""

    audio: MelConfig
    text_cleaners: tuple[str, ...]
    lexicon: Lexicon | None
    symbols: str | None


def resolve_settings(
    tacotron2: Tacotron2,
    waveglow: WaveGlow | None,
    audio: MelConfig | None,
    text_cleaners: Sequence[str] | None,
    lexicon: str | PathLike | Lexicon | AsTrained | None,
) -> Settings:
    """The given settings, else those that the checkpoints record, else the defaults of the published models.

    A given setting that contradicts the training is used, with an `OtherwiseTrainedWarning`.

    Args:
        tacotron2: the acoustic model.
        waveglow: the vocoder, or None if it is Griffin-Lim.
        audio, text_cleaners: None if not given.
        lexicon: `AS_TRAINED` if not given; None for no lexicon.

    Raises:
        FastglowError: the lexicon cannot be read; none was given and the training's is missing.
    """
    acoustic = trained_with(tacotron2)
    vocoder = trained_with(waveglow) if waveglow is not None else TrainedWith()
    audio_in_use = audio or acoustic.audio or vocoder.audio or MelConfig()
    for known, model in ((acoustic.audio, "Tacotron 2"), (vocoder.audio, "WaveGlow")):
        if known is not None and known != audio_in_use:
            _warn(
                f"the audio parameters in use differ from those that the {model} was trained with: "
                f"{audio_differences(audio_in_use, known)}"
            )
    if text_cleaners is not None and acoustic.text_cleaners not in (None, tuple(text_cleaners)):
        _warn(
            f"the text cleaners in use ({', '.join(text_cleaners)}) differ from those that the Tacotron 2 was trained "
            f"with ({', '.join(acoustic.text_cleaners)})"
        )
    cleaners = DEFAULT_CLEANERS if acoustic.text_cleaners is None else acoustic.text_cleaners
    return Settings(
        audio_in_use,
        cleaners if text_cleaners is None else tuple(text_cleaners),
        _resolve_lexicon(acoustic, lexicon),
        acoustic.symbols,
    )


def check_mel_channels(model: Tacotron2 | WaveGlow, audio: MelConfig) -> None:
    """Raises FastglowError unless a model and `audio` have the same number of mel channels."""
    if model.config.n_mel_channels != audio.n_mel_channels:
        raise FastglowError(
            f"the {type(model).__name__} has n_mel_channels={model.config.n_mel_channels}, must have "
            f"{audio.n_mel_channels} as the voice: use models with the same number"
        )


def _resolve_lexicon(known: TrainedWith, lexicon: str | PathLike | Lexicon | AsTrained | None) -> Lexicon | None:
    if isinstance(lexicon, str | PathLike):
        return Lexicon(lexicon)
    if known.lexicon is None:
        return None if lexicon is AS_TRAINED else lexicon
    if lexicon is None:
        _warn(f"the Tacotron 2 was trained with the lexicon {known.lexicon.path}, but is used without one")
    if lexicon is not AS_TRAINED:
        return lexicon
    if not Path(known.lexicon.path).is_file():
        raise FastglowError(
            f"the Tacotron 2 was trained with the lexicon {known.lexicon.path}, which is missing: put "
            f"{Path(known.lexicon.path).name} beside the checkpoint or pass --lexicon FILE (--lexicon /dev/null "
            "for letters alone)"
        )
    found = Lexicon(known.lexicon.path)
    if known.lexicon.digest not in (None, found.digest):
        _warn(f"the lexicon {known.lexicon.path} has changed since the Tacotron 2 was trained with it")
    return found


def with_parts(voice: Voice, *, tacotron2: str | PathLike | None = None, **fields: Any) -> Voice:
    """A voice with some fields replaced.

    What another acoustic model's checkpoint records overrides the voice, whose level is not the model's.
    """
    if tacotron2 is not None:
        known = read_trained_with(tacotron2)
        voice = replace(
            voice,
            tacotron2=Path(tacotron2),
            audio=known.audio or voice.audio,
            text_cleaners=known.text_cleaners or voice.text_cleaners,
            # A checkpoint that records cleaners and no lexicon was trained without one.
            lexicon=AS_TRAINED if known.lexicon or known.text_cleaners else voice.lexicon,
            level=None,
        )
    return replace(voice, **fields)


def with_lexicons(voice: Voice, paths: Sequence[str | PathLike]) -> Voice:
    """A voice that looks words up in these files first, then in its own lexicon, if that exists.

    Raises:
        FastglowError: a file cannot be read, or the voice's lexicon is a `Lexicon` and not a file.
    """
    own = voice.lexicon
    if own is AS_TRAINED:
        known = read_trained_with(voice.tacotron2).lexicon
        own = Path(known.path) if known and Path(known.path).is_file() else None
    if isinstance(own, Lexicon):
        raise FastglowError("the voice has a Lexicon object: make one Lexicon of all files and pass it as lexicon=")
    return replace(voice, lexicon=Lexicon(*paths, *([own] if own else [])))


def _warn(message: str) -> None:
    warnings.warn(message, OtherwiseTrainedWarning, stacklevel=4)
