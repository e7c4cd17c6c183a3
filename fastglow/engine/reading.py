"""Detects from attention and stop gate whether an utterance covers its text from beginning to end."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

# Attention is legible if the mean over time of its largest weight reaches MIN_PEAK, from the start to any time after
# MIN_PEAK_SECONDS (attention may blur after the end of the text). Trained models reach 0.6, uniform attention
# 1 / (number of symbols). The position of the largest weight means nothing if attention is illegible.
MIN_PEAK, MIN_PEAK_SECONDS = 0.4, 0.5
# Number of symbols that attention may go back, skip or stop short. Correct utterances of the bundled voice stay
# within 5.
MAX_JUMP = 8
# Excursions from the path that are at most this long, in seconds, are ignored.
MAX_EXCURSION = 0.1
# Allowed seconds between the end of the text and the firing of the gate. Correct utterances of the bundled voice take
# up to 0.4.
MAX_TAIL = 1.0
# An utterance that runs on is cut at its quietest step between these times, in seconds after the end of the text.
CUT_AFTER, CUT_BEFORE = 0.1, 0.3


class Fault(IntEnum):
    """What is wrong with an utterance, in order of severity.

    UNFINISHED: the step limit was reached before the end of the text. TOO_LONG: the same, although attention
    advanced steadily.
    """

    NONE = 0
    RUNS_ON = 1
    REPEATS = 2
    SKIPS = 3
    BREAKS_OFF = 4
    UNFINISHED = 5
    TOO_LONG = 6


@dataclass(frozen=True)
class Reading:
    """The result of `judge`.

    Attributes:
        fault: the worst.
        end: the step that reached the end of the text, if the utterance runs on and can be cut after it.
        legible: whether the attention points at symbols; if not, UNFINISHED is the only fault that can be detected.
    """

    fault: Fault
    end: int | None = None
    legible: bool = True

    @property
    def rank(self) -> tuple[bool, Fault]:
        """Sort key: the better of two attempts has the lower rank."""
        return not self.legible, self.fault


def judge(alignment: np.ndarray, n_sounding: int, stopped: bool, seconds_per_step: float) -> Reading:
    """Finds the faults of one utterance.

    Args:
        alignment: attention weights, float [steps, symbols], up to the step on which the gate fired or the limit.
        n_sounding: number of symbols up to the last that has a sound; the final marks follow.
        stopped: whether the gate fired.
        seconds_per_step: duration of a decoder step.
    """
    if not len(alignment):
        return Reading(Fault.BREAKS_OFF)
    if not _is_legible(alignment.max(axis=1), round(MIN_PEAK_SECONDS / seconds_per_step)):
        return Reading(Fault.NONE if stopped else Fault.UNFINISHED, legible=False)
    path = _without_excursions(alignment.argmax(axis=1), round(MAX_EXCURSION / seconds_per_step))
    end = _arrival(path, n_sounding)
    if end is None and n_sounding > 1:
        end = _arrival(
            path, n_sounding - 1
        )  # attention may stay on the last sounding symbol and never reach the final mark
    if end is not None and (len(path) - end) * seconds_per_step <= MAX_TAIL:
        end = None  # nothing to cut
    faults = [Fault.NONE]
    if end is not None:
        faults.append(Fault.RUNS_ON)
        path = path[: end + 1]  # the rest will be cut
    elif not stopped:
        steady = path[-1] > path[: -round(MAX_TAIL / seconds_per_step)].max(initial=0)
        faults.append(Fault.TOO_LONG if steady else Fault.UNFINISHED)
    elif path[-1] < n_sounding - _max_jump(n_sounding):
        faults.append(Fault.BREAKS_OFF)
    read = np.maximum.accumulate(path)
    if (read - path).max() > MAX_JUMP:
        faults.append(Fault.REPEATS)
    if np.diff(read, prepend=0).max() > MAX_JUMP:
        faults.append(Fault.SKIPS)
    return Reading(max(faults), end)


def steps_to_keep(end: int, loudness: np.ndarray, seconds_per_step: float) -> int:
    """The number of steps to keep of an utterance that reached the end of its text on step `end`.

    Args:
        end: as in `Reading`.
        loudness: any increasing function of the loudness, [steps].
        seconds_per_step: duration of a decoder step.
    """
    first = end + max(1, round(CUT_AFTER / seconds_per_step))
    window = loudness[first : end + max(1, round(CUT_BEFORE / seconds_per_step)) + 1]
    return first + int(window.argmin()) if len(window) else len(loudness)


def _is_legible(heights: np.ndarray, least: int) -> bool:
    means = heights.cumsum() / np.arange(1, len(heights) + 1)
    return bool(means[min(max(least, 1), len(means)) - 1 :].max() >= MIN_PEAK)


def _without_excursions(path: np.ndarray, width: int) -> np.ndarray:
    """The path with excursions of up to `width` steps removed, by a running median."""
    padded = np.pad(path, width, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * width + 1), axis=1).astype(np.int64)


def _arrival(path: np.ndarray, last: int) -> int | None:
    """The step that reaches symbol `last` after most of the text; else the step from which attention stays there."""
    there = path >= last
    comes = np.flatnonzero(there & ~np.concatenate(([False], there[:-1])))
    for step in comes:
        read = np.unique(np.concatenate(([0], path[:step], [last])))
        leaps = np.diff(read)
        if leaps[leaps > _max_jump(last)].sum() <= last / 2:
            return int(step)
    return int(comes[-1]) if there[-1] else None


def _max_jump(n_symbols: int) -> int:
    return min(MAX_JUMP, max(2, n_symbols // 2))
