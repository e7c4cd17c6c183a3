"""Fades that let audio begin and end without a click."""

from __future__ import annotations

import numpy as np


def fade(audio: np.ndarray, n_in: int, n_out: int) -> np.ndarray:
    """Fades the first `n_in` samples of audio [N] in and the last `n_out` out, along a raised cosine.

    Audio that is too short for both fades is split between them. Returns a float32 copy [N].
    """
    audio = np.array(audio, np.float32)
    room = len(audio) // 2 if n_in and n_out else len(audio)
    for samples, length in ((audio, n_in), (audio[::-1], n_out)):
        length = min(length, room)
        ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(length) + 0.5) / max(length, 1))
        samples[:length] *= ramp.astype(np.float32)
    return audio
