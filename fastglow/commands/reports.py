"""What `fastglow synth` says of the speech it has made."""

from typing import TYPE_CHECKING, Any

from fastglow.errors import FastglowError

if TYPE_CHECKING:
    from fastglow.engine import Speech, Synthesizer


def sentence_reports(speech: "Speech") -> list[dict[str, Any]]:
    return [
        {"text": s.text, "mel_frames": s.mel.shape[1], "audio_seconds": len(s.audio) / speech.sample_rate,
         "stopped": s.stopped, "attempts": s.attempts, "cut": s.cut, "fault": s.fault, "faults": s.faults,
         "words": [{"word": w.text, "start": round(w.start, 3), "end": round(w.end, 3)} for w in s.words]}
        for s in speech.sentences
    ]  # fmt: skip


def computed_with(synthesizer: "Synthesizer") -> dict[str, str | None]:
    """What the models compute on, and in which types."""
    from fastglow.kernels.arguments import dtype_name

    return {
        "device": str(synthesizer.device),
        "dtype": dtype_name(synthesizer.dtype),
        "cpu_decoder": synthesizer.cpu_decoder,
    }


def nothing_spoken(text: str) -> FastglowError:
    """The error for a text that gave no audio."""
    return FastglowError(
        f"there is nothing to speak in {text.strip()[:60]!r}, or the model returned no speech: pass some words, or "
        "another seed"
    )
