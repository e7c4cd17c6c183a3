"""A look-ahead limiter: audio stays below a ceiling, without clipping and without a jump of the gain."""

from __future__ import annotations

import math

import numpy as np

# The gain is set once a block, between blocks it goes in a straight line.
_BLOCK_SECONDS = 0.001
# The gain falls over this many blocks before a peak.
_AHEAD = 5
# Time constant of the gain's return.
_RELEASE_SECONDS = 0.06
# A return ends here: the gain is 1 - 1e-4, and from then on samples keep their bits.
_RELEASED = 1e-4


class Limiter:
    """Lowers the gain around samples beyond the ceiling; elsewhere samples keep their bits.

    Blocks of 1 ms count from the first sample, so the result does not depend on how the audio is split into calls.
    The gain falls along a raised cosine within 5 ms before a peak and returns with a time constant of 60 ms. After
    the last peak it is exactly 1 within 0.7 s; with a peak 1 dB too high, within 0.5 s.

    Args:
        sampling_rate: in Hz.
        ceiling: largest magnitude of the result, above 0.

    Attributes:
        delay: that many samples at most are held back.
    """

    def __init__(self, sampling_rate: int, ceiling: float):
        self._block = max(1, round(_BLOCK_SECONDS * sampling_rate))
        nearest = np.float32(ceiling)
        self._ceiling = nearest if float(nearest) <= ceiling else np.nextafter(nearest, np.float32(0))
        self._decay = math.exp(-self._block / (_RELEASE_SECONDS * sampling_rate))
        rise = np.sin(np.pi * np.arange(1, _AHEAD + 2) / (_AHEAD + 2)) ** 2
        self._smoothing = rise / rise.sum()
        # Blocks whose peaks are known but not yet those of the blocks ahead; at first, silence before the audio.
        self._lead = (_AHEAD + 1) * self._block
        self._held = np.zeros(self._lead, np.float32)
        self._skip = self._lead
        self.delay = self._lead + self._block - 1
        # By how much the gain is below 1: as the last blocks need it, and with the slow return at the last nodes.
        self._needed = np.zeros(_AHEAD + 1)
        self._reduction = np.zeros(_AHEAD)
        self._gain = 1.0

    def push(self, audio: np.ndarray) -> np.ndarray:
        """Finite audio float32 [n] -> as much of the result as is certain, float32 [m]."""
        held = np.concatenate((self._held, audio))
        n_blocks = (len(held) - self._lead) // self._block
        n = n_blocks * self._block
        self._held = held[n:].copy()
        limited = self._limit(held[:n], self._needed_in(held[self._lead : self._lead + n]))
        skipped = min(self._skip, n)
        self._skip -= skipped
        return limited[skipped:]

    def flush(self) -> np.ndarray:
        """The rest, float32."""
        rest = len(self._held) - self._skip
        return self.push(np.zeros(self.delay, np.float32))[:rest]

    def _needed_in(self, blocks: np.ndarray) -> np.ndarray:
        """Whole blocks -> by how much the gain must be below 1 in each, fp64."""
        n_blocks = len(blocks) // self._block
        if max(blocks.max(initial=0.0), -blocks.min(initial=0.0)) <= self._ceiling:
            return np.zeros(n_blocks)
        peaks = np.abs(blocks).reshape(n_blocks, self._block).max(axis=1).astype(np.float64)
        return 1 - self._ceiling / np.maximum(peaks, self._ceiling)

    def _limit(self, blocks: np.ndarray, needed: np.ndarray) -> np.ndarray:
        """The held blocks whose gain the new blocks' needs settle."""
        if not len(needed):
            return blocks
        needed = np.concatenate((self._needed, needed))
        self._needed = needed[-(_AHEAD + 1) :].copy()
        if not needed.any() and not self._reduction.any() and self._gain == 1:  # the gain lags by a node
            return blocks
        # A node lies between two blocks: it serves both, and the needs of the blocks ahead.
        wanted = np.lib.stride_tricks.sliding_window_view(needed, _AHEAD + 2).max(axis=1)
        reduction = np.concatenate((self._reduction, self._returning(wanted)))
        self._reduction = reduction[-_AHEAD:].copy()
        # Each of the averaged reductions is as large as the node's two blocks need, so that the mean is, too.
        gain = np.concatenate(([self._gain], 1 - np.convolve(reduction, self._smoothing, "valid")))
        self._gain = float(gain[-1])
        within = np.arange(self._block) / self._block
        gains = gain[:-1, None] + np.diff(gain)[:, None] * within
        limited = (blocks * gains.ravel()).astype(np.float32)
        return np.clip(limited, -self._ceiling, self._ceiling)  # against rounding

    def _returning(self, wanted: np.ndarray) -> np.ndarray:
        """At least the wanted reductions [n], falling no faster than the release."""
        reduction = float(self._reduction[-1])
        returning = []
        for least in wanted.tolist():
            falling = reduction * self._decay
            reduction = falling if falling > max(least, _RELEASED) else least
            returning.append(reduction)
        return np.array(returning)
