"""Silence at the ends of speech, removed while it streams."""

from __future__ import annotations

import numpy as np

_BLOCK_SECONDS = 0.01
# What stays before the first and after the last block of sound: soft onsets, and the end of a decay.
_KEPT_SECONDS = 0.02


class Trimmer:
    """Removes silence before the first and after the last sound; wholly silent audio becomes empty.

    A block of 10 ms, counted from the first sample, is silent if its RMS is below the threshold. 20 ms on either side
    of the sound stay. A pause is held back until sound follows: memory grows with the longest pause.

    Args:
        sampling_rate: in Hz.
        threshold: RMS of the loudest silence, in units of the audio.

    Attributes:
        n_before: samples removed before the first sound so far.
    """

    def __init__(self, sampling_rate: int, threshold: float):
        self._block = max(1, round(_BLOCK_SECONDS * sampling_rate))
        self._kept = round(_KEPT_SECONDS * sampling_rate)
        self._power = float(threshold) ** 2
        self.n_before = 0
        self._held = np.zeros(0, np.float32)
        self._measured = 0  # samples of what is held whose blocks are measured
        self._end: int | None = None  # of what stays for certain, from the first held sample; None: no sound yet

    def push(self, audio: np.ndarray) -> np.ndarray:
        """Audio float32 [n] -> the samples [m] that stay for certain."""
        self._held = np.concatenate((self._held, audio))
        self._measure((len(self._held) - self._measured) // self._block * self._block)
        return self._take(self._measured)

    def flush(self) -> np.ndarray:
        """The rest, float32."""
        self._measure(len(self._held) - self._measured)
        return self._take(len(self._held))

    def _measure(self, n: int) -> None:
        """Looks for sound in the next n held samples."""
        first = self._measured
        starts = np.arange(0, n, self._block)
        if not len(starts):
            return
        self._measured += n
        squares = self._held[first : self._measured].astype(np.float64) ** 2
        sizes = np.diff(starts, append=n)
        (sounds,) = np.nonzero(np.add.reduceat(squares, starts) >= self._power * sizes)
        if not len(sounds):
            return
        if self._end is None:
            self._drop(max(0, first + int(starts[sounds[0]]) - self._kept))
        last = sounds[-1]
        self._end = self._measured - n + int(starts[last] + sizes[last]) + self._kept

    def _take(self, n: int) -> np.ndarray:
        """The first n held samples as far as they stay; before any sound, drops silence."""
        if self._end is None:
            self._drop(max(0, self._measured - self._kept))
            return np.zeros(0, np.float32)
        n = min(n, self._end)
        taken = self._held[:n]
        self._drop(n)
        return taken

    def _drop(self, n: int) -> None:
        self._held = self._held[n:].copy()
        self._measured -= n
        if self._end is None:
            self.n_before += n
        else:
            self._end -= n
