"""What a synthesis takes from the checkpoints it is made of, where nothing else was asked for."""

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
    """A synthesis was asked for what contradicts the training of its models."""


@dataclass(frozen=True)
class Facts:
    """Settings of a synthesis that its models were trained with."""

    audio: MelConfig
    text_cleaners: tuple[str, ...]
    lexicon: Lexicon | None
    symbols: str | None


def settle(
    tacotron2: Tacotron2,
    waveglow: WaveGlow | None,
    audio: MelConfig | None,
    text_cleaners: Sequence[str] | None,
    lexicon: str | PathLike | Lexicon | AsTrained | None,
) -> Facts:
    """What was asked for, or else what the checkpoints tell, or else the defaults of the published ones.

    Warns, with `OtherwiseTrainedWarning`, of what contradicts the training: what was asked for counts.

    Args:
        tacotron2, waveglow: the models; the second where it is the vocoder.
        audio, text_cleaners: None: not asked for.
        lexicon: `AS_TRAINED`: not asked for; None: none.

    Raises:
        FastglowError: a lexicon that cannot be read; the one of the training is gone and no other was given.
    """
    acoustic = trained_with(tacotron2)
    vocoder = trained_with(waveglow) if waveglow is not None else TrainedWith()
    settled = audio or acoustic.audio or vocoder.audio or MelConfig()
    for known, model in ((acoustic.audio, "Tacotron 2"), (vocoder.audio, "WaveGlow")):
        if known is not None and known != settled:
            _warn(
                f"the audio parameters in use are not those that the {model} was trained with: "
                f"{audio_differences(settled, known)}"
            )
    if text_cleaners is not None and acoustic.text_cleaners not in (None, tuple(text_cleaners)):
        _warn(
            f"the text cleaners in use ({', '.join(text_cleaners)}) are not those that the Tacotron 2 was trained "
            f"with ({', '.join(acoustic.text_cleaners)})"
        )
    cleaners = DEFAULT_CLEANERS if acoustic.text_cleaners is None else acoustic.text_cleaners
    return Facts(
        settled,
        cleaners if text_cleaners is None else tuple(text_cleaners),
        _settle_lexicon(acoustic, lexicon),
        acoustic.symbols,
    )


def _settle_lexicon(known: TrainedWith, lexicon: str | PathLike | Lexicon | AsTrained | None) -> Lexicon | None:
    if isinstance(lexicon, str | PathLike):
        return Lexicon(lexicon)
    if known.lexicon is None:
        return None if lexicon is AS_TRAINED else lexicon
    if lexicon is None:
        _warn(f"the Tacotron 2 was trained with the lexicon {known.lexicon.path}, and is to speak without one")
    if lexicon is not AS_TRAINED:
        return lexicon
    if not Path(known.lexicon.path).is_file():
        raise FastglowError(
            f"the Tacotron 2 was trained with the lexicon {known.lexicon.path}, which is gone: put "
            f"{Path(known.lexicon.path).name} beside the checkpoint or pass --lexicon FILE (--lexicon /dev/null "
            "for letters alone)"
        )
    found = Lexicon(known.lexicon.path)
    if known.lexicon.digest not in (None, found.digest):
        _warn(f"the lexicon {known.lexicon.path} has changed since the Tacotron 2 was trained with it")
    return found


def with_parts(voice: Voice, *, tacotron2: str | PathLike | None = None, **fields: Any) -> Voice:
    """A voice with other fields. Of another acoustic model, what its checkpoint tells counts and not the voice's."""
    if tacotron2 is not None:
        known = read_trained_with(tacotron2)
        voice = replace(
            voice,
            tacotron2=Path(tacotron2),
            audio=known.audio or voice.audio,
            text_cleaners=known.text_cleaners or voice.text_cleaners,
            # One that tells its cleaners and no lexicon was trained without.
            lexicon=AS_TRAINED if known.lexicon or known.text_cleaners else voice.lexicon,
        )
    return replace(voice, **fields)


def with_lexicons(voice: Voice, paths: Sequence[str | PathLike]) -> Voice:
    """A voice that looks words up in these files first, and then in its own lexicon, if that is there."""
    own = voice.lexicon
    if own is AS_TRAINED:
        known = read_trained_with(voice.tacotron2).lexicon
        own = Path(known.path) if known and Path(known.path).is_file() else None
    return replace(voice, lexicon=Lexicon(*paths, *([own] if own else [])))


def _warn(message: str) -> None:
    warnings.warn(message, OtherwiseTrainedWarning, stacklevel=4)
