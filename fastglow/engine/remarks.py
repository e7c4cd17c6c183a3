"""What a synthesis warns of."""

import sys
import warnings

from fastglow.models.tacotron2 import DecoderStepLimitWarning

from .attempts import Utterance
from .reading import Fault


class SilentTextWarning(UserWarning):
    """A text, or one of its sentences, gave no audio."""


class FaultySpeechWarning(UserWarning):
    """Every attempt at a sentence had a fault; the best one is used."""


_FAULTS = {
    Fault.RUNS_ON: "goes on past its end",
    Fault.STALLS: "stands still for a while",
    Fault.REPEATS: "repeats a part of the text",
    Fault.SKIPS: "skips a part of the text",
    Fault.BREAKS_OFF: "breaks off before the end of the text",
    Fault.UNFINISHED: "never reaches the end of the text",
}


def warn_of_silence(text: str) -> None:
    """There is nothing to speak in a text."""
    _warn(f"nothing to speak in {_shorten(text)!r}", SilentTextWarning)


def warn_of_faults(text: str, utterance: Utterance, max_decoder_steps: int) -> None:
    """A sentence has no audio, or a fault that no attempt was without."""
    name, fault = repr(_shorten(text)), utterance.fault
    if not utterance.mel.shape[1]:
        _warn(f"the model produced no frames for {name}", SilentTextWarning)
    elif fault >= Fault.UNFINISHED and not utterance.cut:
        _warn(
            f"the stop gate did not fire within max_decoder_steps={max_decoder_steps}, which cut the speech of {name}: "
            "split it, or try another seed",
            DecoderStepLimitWarning,
        )
    elif fault:
        where = "there" if fault is Fault.RUNS_ON else "after its last progress"
        outcome = f"; it was cut {where}" if utterance.cut else ": try another seed, or split it"
        attempts = f"each of {utterance.attempts} attempts" if utterance.attempts > 1 else "its only attempt"
        _warn(f"the speech of {name} {_FAULTS[fault]} in {attempts}{outcome}", FaultySpeechWarning)


def _warn(message: str, category: type[Warning]) -> None:
    """Points at the first caller outside the package, however deep the engine is."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals["__name__"].split(".")[0] == "fastglow":
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, category, stacklevel=depth)


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
