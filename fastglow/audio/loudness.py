"""The loudness of the returned speech."""

from __future__ import annotations

import math
from numbers import Real

import numpy as np

from fastglow.errors import FastglowError

# RMS of the active part, in dB relative to a full-scale constant. Speech peaks 10 to 16 dB above its RMS, so the
# ceiling rarely lowers a sentence's level.
LEVEL_DB = -18.0
CEILING_DB = -1.0
# Limits the gain, so that near-silent output is not amplified to noise at speech level.
MAX_GAIN_DB = 24.0

_BLOCK_SECONDS = 0.02
# Blocks this far below the loudest are pauses.
_ACTIVE_DB = -25.0


def set_level(audio: np.ndarray, sampling_rate: int, normalize: bool = True, volume: float = 1.0) -> np.ndarray:
    """Scales audio [N] to a fixed loudness: float32 [N] in [-1, 1].

    `normalize` brings the RMS of the active part (blocks of 20 ms within 25 dB of the loudest) to -18 dBFS, with a
    gain of at most 24 dB that keeps peaks below -1 dBFS. `volume` is a further factor. Nothing is clipped: audio
    that would exceed full scale is scaled to peak there. Without `normalize` and with volume 1, audio within [-1, 1]
    is unchanged.

    Raises:
        FastglowError: the volume is negative or not finite.
    """
    check_volume(volume)
    audio = np.asarray(audio, np.float32)
    peak = float(np.abs(audio).max(initial=0.0))
    if not peak:
        return audio
    gain = float(volume)
    if normalize:
        level = _amplitude(LEVEL_DB) / _active_rms(audio, round(_BLOCK_SECONDS * sampling_rate))
        gain *= min(level, _amplitude(MAX_GAIN_DB), _amplitude(CEILING_DB) / peak)
    gain = min(gain, 1 / peak)
    return audio if gain == 1 else (audio * np.float64(gain)).astype(np.float32)


def check_volume(volume: object) -> None:
    """Raises FastglowError for a volume that is negative or not finite."""
    if not isinstance(volume, Real) or not math.isfinite(volume) or volume < 0:
        raise FastglowError(f"volume={volume!r} must be a factor of at least 0; 1 keeps the level")


def _active_rms(audio: np.ndarray, block: int) -> float:
    block = max(1, min(block, len(audio)))
    blocks = audio[: len(audio) // block * block].astype(np.float64).reshape(-1, block)
    powers = (blocks**2).mean(axis=1)
    active = powers[powers >= powers.max() * _amplitude(_ACTIVE_DB) ** 2]
    # All of the sound may be in the last, incomplete block; then only MAX_GAIN_DB and the peak limit the gain.
    return max(math.sqrt(active.mean()), np.finfo(np.float32).tiny)


def _amplitude(decibels: float) -> float:
    return 10 ** (decibels / 20)
