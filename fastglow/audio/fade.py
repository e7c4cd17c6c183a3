"""Fades that let audio begin and end without a click."""

from __future__ import annotations

import numpy as np


class Fader:
    """Fades audio in and out along a raised cosine, in pieces.

    Audio that is too short for both fades is split between them. The last samples are held back, because the length of
    the fade at the end is known only there.

    Args:
        n_in: samples to fade in; 0: none.
        n_out: samples that a fade at the end takes at most, and that are held back; at least 2 * n_in.
    """

    def __init__(self, n_in: int, n_out: int):
        self._n_in = n_in
        self.delay = max(n_out, 2 * n_in)
        self._held = np.zeros(0, np.float32)
        self._start = 0  # of what is held, in samples from the first

    def push(self, audio: np.ndarray) -> np.ndarray:
        """Audio float32 [n] -> the samples [m] that no fade at the end can reach."""
        held = np.concatenate((self._held, audio))
        n = max(0, len(held) - self.delay)
        self._held = held[n:].copy()
        return self._faded_in(held[:n], self._n_in)

    def finish(self, n_out: int) -> np.ndarray:
        """The rest, faded out within its last `n_out` samples, 0 to `delay`."""
        n = self._start + len(self._held)
        room = n // 2 if self._n_in and n_out else n
        audio = self._faded_in(self._held, min(self._n_in, room))
        n_out = min(n_out, room)
        audio[len(audio) - n_out :] *= _ramp(n_out)[::-1]
        return audio

    def _faded_in(self, audio: np.ndarray, n_in: int) -> np.ndarray:
        ramp = _ramp(n_in)[self._start : self._start + len(audio)]
        audio[: len(ramp)] *= ramp
        self._start += len(audio)
        return audio


def _ramp(length: int) -> np.ndarray:
    """From 0 to 1, float32 [length]."""
    return (0.5 - 0.5 * np.cos(np.pi * (np.arange(length) + 0.5) / max(length, 1))).astype(np.float32)
