"""Fades, so that audio begins and ends without a click."""

from __future__ import annotations

import numpy as np


def fade(audio: np.ndarray, n_in: int, n_out: int) -> np.ndarray:
    """Audio [N] whose first `n_in` and last `n_out` samples rise from and fall to silence as a raised cosine.

    The fades share audio that is too short for both. Returns float32 [N]; `audio` stays as it is.
    """
    audio = np.array(audio, np.float32)
    room = len(audio) // 2 if n_in and n_out else len(audio)
    for samples, length in ((audio, n_in), (audio[::-1], n_out)):
        length = min(length, room)
        ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(length) + 0.5) / max(length, 1))
        samples[:length] *= ramp.astype(np.float32)
    return audio
