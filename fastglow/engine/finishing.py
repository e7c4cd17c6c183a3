"""From a vocoder's samples to what is heard: trimmed, at another speed, levelled, limited and faded, in pieces."""

from typing import Protocol

import numpy as np

from fastglow.audio.fade import Fader
from fastglow.audio.limiter import Limiter
from fastglow.audio.stretch import TimeStretch
from fastglow.audio.trim import Trimmer
from fastglow.errors import FastglowError

# Lengths of the fades in seconds: where sentences join, and where a sentence that runs on is cut.
JOIN_FADE, CUT_FADE = 0.005, 0.03


class _Stage(Protocol):
    def push(self, audio: np.ndarray) -> np.ndarray: ...

    def flush(self) -> np.ndarray: ...


class Finisher:
    """Finishes one sentence. However its audio is split into calls, the concatenated results are the same bits.

    Silence is trimmed first, as the vocoder made it, so that neither volume nor speed matter to what counts as silence.
    With the defaults, a ceiling above every peak and no fades, the bits do not change.

    Args:
        sampling_rate: in Hz.
        gain: factor, at least 0.
        ceiling: largest magnitude of the result: higher peaks are lowered by a `Limiter`.
        speed: factor in `fastglow.audio.stretch.SPEEDS`; 2 is twice as fast, at the same pitch.
        silence: RMS of the vocoder's samples below which they are silence, to be removed from the sentence's ends;
            None: nothing is removed. Of a wholly silent sentence nothing remains.
        follows: the sentence follows another: it fades in within `JOIN_FADE`.

    Raises:
        FastglowError: the speed is out of range, or its package is not installed.
    """

    def __init__(
        self,
        sampling_rate: int,
        *,
        gain: float = 1.0,
        ceiling: float = 1.0,
        speed: float = 1.0,
        silence: float | None = None,
        follows: bool = False,
    ):
        self._gain = np.float32(gain)
        self._trimmer = None if silence is None else Trimmer(sampling_rate, silence)
        self._before_gain: list[_Stage] = [] if self._trimmer is None else [self._trimmer]
        if speed != 1:
            self._before_gain.append(TimeStretch(sampling_rate, speed))
        self._limiter = Limiter(sampling_rate, ceiling)
        self._join, self._cut = round(JOIN_FADE * sampling_rate), round(CUT_FADE * sampling_rate)
        self._fader = Fader(self._join * follows, self._cut)

    @property
    def n_trimmed(self) -> int:
        """Of the vocoder's samples, how many were removed from the sentence's beginning so far."""
        return self._trimmer.n_before if self._trimmer else 0

    def push(self, audio: np.ndarray) -> np.ndarray:
        """The sentence's next samples [n] -> finished ones, float32 [m].

        Raises FastglowError for samples that are NaN or infinite.
        """
        audio = np.asarray(audio, np.float32)
        if not np.isfinite(audio).all():
            raise FastglowError(
                "the vocoder gave samples that are NaN or infinite: use dtype float32, or another model"
            )
        for stage in self._before_gain:
            audio = stage.push(audio)
        return self._fader.push(self._limiter.push(self._amplified(audio)))

    def finish(self, *, is_followed: bool, cut: bool) -> np.ndarray:
        """The rest of the sentence, float32.

        Args:
            is_followed: by another sentence: it fades out within `JOIN_FADE`.
            cut: its speech is cut off: it fades out within `CUT_FADE`.
        """
        rest = np.zeros(0, np.float32)
        for stage in self._before_gain:
            rest = np.concatenate((stage.push(rest), stage.flush()))
        rest = np.concatenate((self._limiter.push(self._amplified(rest)), self._limiter.flush()))
        n_out = self._cut if cut else self._join * is_followed
        return np.concatenate((self._fader.push(rest), self._fader.finish(n_out)))

    def _amplified(self, audio: np.ndarray) -> np.ndarray:
        return audio if self._gain == 1 else audio * self._gain
