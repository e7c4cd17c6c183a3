"""Speech at another speed and the same pitch, while it streams."""

from __future__ import annotations

from numbers import Real

import numpy as np

from fastglow.errors import FastglowError

# Slower, Signalsmith Stretch makes phases random and speech diffuse; faster, sounds become shorter than its window.
SPEEDS = (0.5, 4.0)

# Its window, and the step from one window to the next: in the input or in the result, whichever is longer. The
# package's own preset, 120 and 30 ms, blurs short sounds: at 1.3 times the speed a recogniser errs on 0.37 of the words
# of 30 sentences, here on 0.30, unstretched on 0.20.
_WINDOW_SECONDS = 0.06
_STEP_SECONDS = 0.015

# What is stretched at once, as seconds of the result: more is smoother, less is sooner heard.
_BLOCK_SECONDS = 0.4
# Neighbouring blocks overlap this long, and are shifted by up to a period of a low voice so that their waves match.
_OVERLAP_SECONDS = 0.02
_SHIFT_SECONDS = 0.0125

_TINY = 1e-12


def check_speed(speed: object) -> None:
    """Raises FastglowError for a speed out of `SPEEDS`."""
    low, high = SPEEDS
    if not isinstance(speed, Real) or not low <= float(speed) <= high:
        raise FastglowError(f"speed={speed!r} must be a factor from {low:g} to {high:g}; 1 keeps the speed")


class TimeStretch:
    """Changes the speed of audio and keeps its pitch: n samples become round(n / speed).

    Signalsmith Stretch, a phase vocoder, takes whole signals. Here it takes blocks, counted from the first sample, so
    that the result does not depend on how the audio is split into calls. Blocks begin with phases of their own; each
    is therefore advanced by up to 12.5 ms, to where it matches the one before best, as in WSOLA (Verhelst & Roelands,
    1993), and they fade into each other at constant power.

    Args:
        sampling_rate: in Hz.
        speed: factor in `SPEEDS`; 2 is twice as fast.

    Raises:
        FastglowError: the speed is out of range, or python-stretch is not installed.
    """

    def __init__(self, sampling_rate: int, speed: float):
        check_speed(speed)
        try:
            from python_stretch import Signalsmith
        except ImportError as error:
            raise FastglowError(f"speed={speed:g} needs python-stretch: run pip install python-stretch") from error
        # The seed matters at the lowest speeds only, where rounding makes some steps random.
        self._stretch = Signalsmith.Stretch(0)
        step = _STEP_SECONDS * sampling_rate / max(speed, 1 / speed)
        self._stretch.configure(1, round(_WINDOW_SECONDS * sampling_rate), max(1, round(step)))
        self._stretch.reset()
        self._speed = float(speed)
        self._block = round(_BLOCK_SECONDS * sampling_rate)
        self._half = max(1, round(_OVERLAP_SECONDS * sampling_rate / 2))
        self._shift = round(_SHIFT_SECONDS * sampling_rate)
        # Its windows reach half their length beyond either end, where their sum is incomplete.
        margin = self._stretch.outputLatency() + self._stretch.intervalSamples()
        self._before = margin + self._half
        self._n_out = self._before + self._block + self._half + self._shift + margin
        self._n_in = round(self._n_out * self._speed)
        self._n_blocks = 0
        self._tail: np.ndarray | None = None  # of the last block, to be overlapped
        self._n_pushed = self._n_returned = 0
        # Silence before the first sample.
        self._held = np.zeros(-self._input_start(), np.float32)

    def push(self, audio: np.ndarray) -> np.ndarray:
        """Audio float32 [n] -> as much of the result as is complete, float32 [m]."""
        self._n_pushed += len(audio)
        return self._process(audio)

    def flush(self) -> np.ndarray:
        """The rest, float32."""
        rest = round(self._n_pushed / self._speed) - self._n_returned
        parts = [np.zeros(0, np.float32)]
        while sum(map(len, parts)) < rest:
            parts.append(self._process(np.zeros(self._n_in, np.float32)))
        return np.concatenate(parts)[:rest]

    def _process(self, audio: np.ndarray) -> np.ndarray:
        self._held = np.concatenate((self._held, audio))
        blocks = [np.zeros(0, np.float32)]
        while len(self._held) >= self._n_in:
            blocks.append(self._next_block())
        result = np.concatenate(blocks)
        self._n_returned += len(result)
        return result

    def _input_start(self) -> int:
        """Where the next block's input begins, in samples from the first."""
        return round((self._n_blocks * self._block - self._before) * self._speed)

    def _next_block(self) -> np.ndarray:
        # The binding takes the length of its result from this factor.
        self._stretch.timeFactor = self._n_in / self._n_out
        stretched = np.asarray(self._stretch.process(self._held[None, : self._n_in]))[0].astype(np.float64)
        start = self._input_start()
        self._n_blocks += 1
        self._held = self._held[self._input_start() - start :].copy()
        first, overlap = self._before - self._half, 2 * self._half
        if self._tail is None:
            block = stretched[first : first + self._block + overlap]
            self._tail = block[self._block :]
            return block[self._half : self._block].astype(np.float32)
        candidates = stretched[first : first + overlap + self._shift]
        shift, likeness = _best_match(candidates, self._tail)
        block = stretched[first + shift : first + shift + self._block + overlap]
        block[:overlap] = _join(self._tail, block[:overlap], likeness)
        self._tail = block[self._block :]
        return block[: self._block].astype(np.float32)


def _best_match(candidates: np.ndarray, tail: np.ndarray) -> tuple[int, float]:
    """Where in `candidates` the wave is most like `tail` -> (index, correlation coefficient from 0 to 1)."""
    products = np.correlate(candidates, tail, "valid")
    energies = np.convolve(candidates**2, np.ones(len(tail)), "valid")
    likeness = products / np.sqrt(energies * np.sum(tail**2) + _TINY)
    best = int(likeness.argmax())
    return best, min(max(float(likeness[best]), 0.0), 1.0)


def _join(old: np.ndarray, new: np.ndarray, likeness: float) -> np.ndarray:
    """Fades from one wave to the other; the less alike they are, the more a plain sum would lose power midway."""
    share = 0.5 - 0.5 * np.cos(np.pi * (np.arange(len(old)) + 0.5) / len(old))
    power = share**2 + (1 - share) ** 2 + 2 * likeness * share * (1 - share)
    return ((1 - share) * old + share * new) / np.sqrt(power)
