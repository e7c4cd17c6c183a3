"""When each word of a sentence is heard, from the attention of the decoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastglow.text.sequence import Span

from .reading import MAX_JUMP

# Attention below this is as good as none, so that a glance away from the path costs it little.
_LEAST_WEIGHT = 0.01


class Word(NamedTuple):
    """A word as written, with its marks, and when it is heard, in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Clock:
    """From decoder steps to seconds of a sentence's audio.

    Attributes:
        seconds_per_step: of the decoder.
        trimmed: seconds that were removed from the beginning.
        speed: factor.
        seconds: of the audio, trimmed and at its speed.
    """

    seconds_per_step: float
    trimmed: float
    speed: float
    seconds: float

    def at(self, steps: np.ndarray) -> np.ndarray:
        """Seconds, within the audio."""
        return np.clip((steps * self.seconds_per_step - self.trimmed) / self.speed, 0.0, self.seconds)


def word_times(alignment: np.ndarray, words: Sequence[Span], clock: Clock) -> list[Word]:
    """When the words are heard: ascending and within the audio.

    A word begins and ends where attention comes to its first symbol and to the mark after it. Two words with nothing
    but one symbol, a space, between them meet in the middle of its time. What attention does not reach, or leaps over
    by more than `MAX_JUMP` symbols, is not spoken and left out.

    Args:
        alignment: attention weights, float [steps, symbols].
        words: with their symbols, in order.
        clock: of the sentence.
    """
    if not alignment.size:
        return []
    path = monotone_path(alignment)
    arrivals = _arrivals(path, alignment.shape[1])
    begins = np.array([arrivals[word.start] for word in words])
    ends = np.array([arrivals[word.end] for word in words])
    for i in range(1, len(words)):
        if words[i].start - words[i - 1].end <= 1:
            begins[i] = ends[i - 1] = (begins[i] + ends[i - 1]) / 2
    read = _read_symbols(path, alignment.shape[1])
    times = zip(words, clock.at(begins).tolist(), clock.at(ends).tolist(), strict=True)
    return [Word(word.text, start, end) for word, start, end in times if read[word.start : word.end].any()]


def monotone_path(alignment: np.ndarray) -> np.ndarray:
    """The path that never goes back on which attention is strongest: the symbol of each step, int64 [steps].

    The sum of the weights' logarithms is maximal (Viterbi's algorithm). Any number of symbols may be skipped.

    Args:
        alignment: attention weights, float [steps, symbols], both at least 1.
    """
    scores = np.log(np.maximum(alignment, _LEAST_WEIGHT))
    n_steps, n_symbols = scores.shape
    before = np.zeros((n_steps, n_symbols), np.int64)  # the symbol of the step before
    symbols = np.arange(n_symbols)
    best = scores[0]
    for step in range(1, n_steps):
        highest = np.maximum.accumulate(best)
        before[step] = np.maximum.accumulate(np.where(best == highest, symbols, 0))
        best = highest + scores[step]
    path = np.empty(n_steps, np.int64)
    path[-1] = best.argmax()
    for step in range(n_steps - 1, 0, -1):
        path[step - 1] = before[step, path[step]]
    return path


def _arrivals(path: np.ndarray, n_symbols: int) -> np.ndarray:
    """The step at which the path comes to each symbol, and at last to the end, float [symbols + 1]."""
    symbols = np.arange(n_symbols + 1)
    steps = np.searchsorted(path, symbols)
    # Symbols that a leap passes over share the time of one step.
    _, firsts, counts = np.unique(steps, return_index=True, return_counts=True)
    place = symbols - np.repeat(firsts, counts)
    arrivals = steps + (place + 0.5) / np.repeat(counts, counts) - 0.5
    return np.where(symbols > path[-1], len(path), np.maximum(arrivals, 0))


def _read_symbols(path: np.ndarray, n_symbols: int) -> np.ndarray:
    """Whether each symbol is read, bool [symbols]; a small leap reads what it passes over."""
    reached = np.unique(path)
    moves = np.diff(reached, prepend=-1)
    read = np.zeros(n_symbols, bool)
    for symbol, move in zip(reached, moves, strict=True):
        read[symbol - move + 1 if move <= MAX_JUMP else symbol : symbol + 1] = True
    return read
