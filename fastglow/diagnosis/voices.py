"""Checks of the bundled voices."""

from .findings import Finding

WORD = "Hello."
REMEDY = "install fastglow again: files of the voice are damaged or missing"


def speaks(voice: str) -> list[Finding]:
    """Whether a voice speaks a word."""
    from fastglow.threads import let_threads_sleep

    let_threads_sleep()
    import numpy as np

    from fastglow.engine import Synthesizer

    speech = Synthesizer.from_voice(voice).synthesize(WORD, seed=1)
    if not np.isfinite(speech.audio).all() or not speech.audio.any():
        return [Finding(voice, "failed", f"{WORD!r} gave {speech.seconds:.2f} s without sound", REMEDY)]
    detail = f"speaks {WORD!r}: {speech.seconds:.2f} s of sound in {speech.timings['total']:.2f} s"
    return [Finding(voice, "ok", detail)]


def none_bundled() -> list[Finding]:
    return [Finding("voices", "failed", "no voice is bundled", REMEDY)]
