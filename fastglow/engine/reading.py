"""Judges from its attention and its stop gate whether an utterance read its text from beginning to end."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

# Attention is legible if the mean of its largest weight reaches this over at least the first half second; below it, the
# position of the largest weight means nothing. Trained models reach 0.6, evenly spread attention 1 / (number of
# symbols). Attention may blur after the end of the text.
LEGIBLE, LEGIBLE_FOR = 0.4, 0.5
# Symbols by which attention may go back, skip or stop short. Correct utterances of the bundled voice stay within 5.
SLACK = 8
# Seconds for which attention may leave its path.
GLANCE = 0.1
# Seconds at the end of the text before the gate fires. Correct utterances of the bundled voice take up to 0.3.
LINGER = 1.0
# The cut is at the quietest frame between these times, in seconds after the end of the text was reached.
CUT_AFTER, CUT_BEFORE = 0.1, 0.3


class Fault(IntEnum):
    """What is wrong with an utterance, in order of severity.

    UNFINISHED: the steps ran out before the end of the text. TOO_LONG: they ran out while reading made steady progress.
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
    """
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
        """Sorts the better of two attempts at a text first."""
        return not self.legible, self.fault


def judge(alignment: np.ndarray, n_sounding: int, stopped: bool, seconds_per_step: float) -> Reading:
    """Judges one utterance.

    Args:
        alignment: attention weights, float [steps, symbols], up to the step on which the gate fired or the limit.
        n_sounding: number of symbols up to the last that has a sound; the final marks follow.
        stopped: whether the gate fired.
        seconds_per_step: duration of a decoder step.
    """
    if not len(alignment):
        return Reading(Fault.BREAKS_OFF)
    if not _is_legible(alignment.max(axis=1), round(LEGIBLE_FOR / seconds_per_step)):
        return Reading(Fault.NONE if stopped else Fault.UNFINISHED, legible=False)
    path = _without_glances(alignment.argmax(axis=1), round(GLANCE / seconds_per_step))
    end = _arrival(path, n_sounding)
    if end is None and n_sounding > 1:
        end = _arrival(path, n_sounding - 1)  # attention may stay on the last sound and never reach the marks
    if end is not None and (len(path) - end) * seconds_per_step <= LINGER:
        end = None  # nothing to cut
    faults = [Fault.NONE]
    if end is not None:
        faults.append(Fault.RUNS_ON)
        path = path[: end + 1]  # the rest will be cut
    elif not stopped:
        steady = path[-1] > path[: -round(LINGER / seconds_per_step)].max(initial=0)
        faults.append(Fault.TOO_LONG if steady else Fault.UNFINISHED)
    elif path[-1] < n_sounding - _slack(n_sounding):
        faults.append(Fault.BREAKS_OFF)
    read = np.maximum.accumulate(path)
    if (read - path).max() > SLACK:
        faults.append(Fault.REPEATS)
    if np.diff(read, prepend=0).max() > SLACK:
        faults.append(Fault.SKIPS)
    return Reading(max(faults), end)


def cut_behind(end: int, loudness: np.ndarray, seconds_per_step: float) -> int:
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
    return bool(means[min(max(least, 1), len(means)) - 1 :].max() >= LEGIBLE)


def _without_glances(path: np.ndarray, width: int) -> np.ndarray:
    """The path with excursions of up to `width` steps removed, by a running median."""
    padded = np.pad(path, width, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * width + 1), axis=1).astype(np.int64)


def _arrival(path: np.ndarray, last: int) -> int | None:
    """The step on which attention reaches symbol `last` with the text read, or for good; None if there is none."""
    there = path >= last
    comes = np.flatnonzero(there & ~np.concatenate(([False], there[:-1])))
    for step in comes:
        read = np.unique(np.concatenate(([0], path[:step], [last])))
        leaps = np.diff(read)
        if leaps[leaps > _slack(last)].sum() <= last / 2:
            return int(step)
    return int(comes[-1]) if there[-1] else None


def _slack(n_symbols: int) -> int:
    return min(SLACK, max(2, n_symbols // 2))
