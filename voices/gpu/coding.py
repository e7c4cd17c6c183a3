"""Recordings and log-mels as few bytes, decoded with NumPy and the standard library alone.

Recordings: a modified discrete cosine transform (Princen and Bradley 1986) with a sine window, whose coefficients are
rounded to multiples of a step. The step of a band follows its level to the power of `EXPONENT`, so that the noise lies
under the speech in all bands. What is rounded is compressed by xz, band by band.
"""

import io
import lzma
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from fastglow.errors import FastglowError

HOP = 256  # samples; coefficients of a frame
BANDS = np.array([0, 2, 4, 6, 8, 10, 12, 15, 18, 22, 27, 33, 40, 50, 62, 78, 98, 124, 156, 200, HOP])  # edges
EXPONENT = 0.4
STEP = 8.0  # of a band whose level is 1, in units of int16
LEVELS = 2  # per octave
MEL_STEP = 0.2  # of log-mels, natural logarithm

_XZ = [{"id": lzma.FILTER_LZMA2, "preset": 6, "pb": 0, "lc": 4}]


@lru_cache
def _basis() -> np.ndarray:
    """The windowed transform, orthonormal over overlapping frames: float64 [HOP, 2 HOP]."""
    i, t = np.arange(HOP)[:, None], np.arange(2 * HOP)[None]
    cosines = np.cos(np.pi / HOP * (t + 0.5 + HOP / 2) * (i + 0.5))
    return np.sqrt(2 / HOP) * cosines * np.sin(np.pi * (t + 0.5) / (2 * HOP))


def n_frames(samples: int) -> int:
    """Frames of a recording: each sample is in two."""
    return -(-samples // HOP) + 1


def transform(samples: np.ndarray) -> np.ndarray:
    """int16 [N] to coefficients float64 [n_frames(N), HOP], which have the same energy."""
    frames = n_frames(len(samples))
    padded = np.zeros((frames + 1) * HOP)
    padded[HOP : HOP + len(samples)] = samples
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * HOP)[::HOP] @ _basis().T


def inverse(coefficients: np.ndarray, samples: int) -> np.ndarray:
    """The inverse of `transform`, rounded to int16 [samples]."""
    halves = (coefficients @ _basis()).reshape(-1, 2, HOP)
    padded = np.zeros((len(coefficients) + 1, HOP))
    padded[:-1] += halves[:, 0]
    padded[1:] += halves[:, 1]
    return np.clip(np.rint(padded.reshape(-1)[HOP : HOP + samples]), -32768, 32767).astype(np.int16)


def steps_of(levels: np.ndarray) -> np.ndarray:
    """The step of each coefficient: levels int8 [frames, bands] to float64 [frames, HOP]."""
    return np.repeat(STEP * 2.0 ** (EXPONENT / LEVELS * levels), np.diff(BANDS), axis=1)


def levels_of(coefficients: np.ndarray) -> np.ndarray:
    """The level of each band, in steps of 1 / LEVELS octaves: int8 [frames, bands]. Large enough that all coefficients
    are at most 127 steps."""
    starts = BANDS[:-1]
    power = np.add.reduceat(coefficients**2, starts, axis=1) / np.diff(BANDS)
    largest = np.maximum.reduceat(np.abs(coefficients), starts, axis=1)
    usual = np.rint(LEVELS / 2 * np.log2(np.maximum(power, 1)))
    least = np.ceil(LEVELS / EXPONENT * np.log2(np.maximum(largest, 1) / (127 * STEP)))
    return np.maximum(usual, least).astype(np.int8)


def encode_recordings(recordings: Sequence[np.ndarray]) -> bytes:
    """Samples int16 [N] of recordings."""
    coefficients = np.concatenate([transform(samples) for samples in recordings])
    levels = levels_of(coefficients)
    rounded = np.rint(coefficients / steps_of(levels)).astype(np.int8)
    return _compress([np.diff(levels, axis=0, prepend=np.int8(0)).T, rounded.T])


def decode_recordings(data: bytes, lengths: Sequence[int]) -> list[np.ndarray]:
    """The recordings, int16 [length] each."""
    changes, rounded = _decompress(data)
    levels = np.cumsum(changes.T, axis=0, dtype=np.int8)
    ends = np.cumsum([n_frames(length) for length in lengths])
    coefficients = rounded.T * steps_of(levels)
    return [inverse(frames, n) for frames, n in zip(np.split(coefficients, ends[:-1]), lengths, strict=True)]


def encode_mels(mels: Sequence[np.ndarray]) -> bytes:
    """Log-mels float32 [channels, frames] within 25 nepers, with an error of at most MEL_STEP / 2.

    Half the change that the channel below makes from frame to frame is expected of each channel.
    """
    rounded = np.rint(np.concatenate(mels, axis=1) / MEL_STEP).astype(np.int16)
    if np.ptp(rounded) > 127:
        raise FastglowError(f"log-mels range over {np.ptp(rounded) * MEL_STEP:.0f}, must be at most {127 * MEL_STEP:g}")
    least = rounded.min()
    changes = np.diff(rounded - least, axis=1, prepend=np.int16(0)).astype(np.int8)
    changes[1:] -= changes[:-1] >> 1  # wraps around
    return _compress([least, changes])


def decode_mels(data: bytes, lengths: Sequence[int]) -> list[np.ndarray]:
    """The log-mels, float32 [channels, length] each."""
    least, changes = _decompress(data)
    for below, channel in zip(changes, changes[1:], strict=False):
        channel += below >> 1
    rounded = np.cumsum(changes, axis=1, dtype=np.int8) + least
    parts = np.split(rounded, np.cumsum(lengths)[:-1], axis=1)
    return [np.multiply(part, MEL_STEP, dtype=np.float32) for part in parts]


def _compress(arrays: Sequence[np.ndarray]) -> bytes:
    file = io.BytesIO()
    for array in arrays:
        np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return lzma.compress(file.getbuffer(), filters=_XZ)


def _decompress(data: bytes) -> list[np.ndarray]:
    file = io.BytesIO(lzma.decompress(data))
    return [np.load(file, allow_pickle=False), np.load(file, allow_pickle=False)]
