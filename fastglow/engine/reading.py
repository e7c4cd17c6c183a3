"""Whether an utterance read its text from beginning to end, told from its attention and its stop gate."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

# Attention of this mean height points at symbols; below it, where it points means nothing. Trained models have 0.6
# and more, evenly spread attention 1 over the number of symbols.
LEGIBLE = 0.4
# Symbols by which attention may go back, leap or stop short. Right utterances of the bundled voice stay within 5.
SLACK = 8
# Seconds in which a single glance elsewhere is no leap.
GLANCE = 0.1
# Seconds at the end of the text before the gate fires. Right utterances of the bundled voice take up to 0.3.
LINGER = 1.0
# Where to cut, in seconds after the end of the text was reached: at the quietest frame between these.
CUT_AFTER, CUT_BEFORE = 0.1, 0.3


class Fault(IntEnum):
    """What is wrong with an utterance, the lesser before the worse."""

    NONE = 0
    RUNS_ON = 1
    REPEATS = 2
    SKIPS = 3
    BREAKS_OFF = 4
    UNFINISHED = 5


@dataclass(frozen=True)
class Reading:
    """
    Attributes:
        fault: the worst.
        end: the step on which the end of the text was reached for good to be cut behind, if the utterance runs on.
        legible: whether the attention told anything; if not, no more than UNFINISHED was looked for.
    """

    fault: Fault
    end: int | None = None
    legible: bool = True


def judge(alignment: np.ndarray, n_sounding: int, stopped: bool, seconds_per_step: float) -> Reading:
    """Judges one utterance.

    Args:
        alignment: attention weights, float [steps, symbols], of the steps before the gate fired or the limit came.
        n_sounding: number of symbols up to the last that has a sound; behind it stand the final marks.
        stopped: whether the gate fired.
        seconds_per_step: duration of a decoder step.
    """
    if not len(alignment):
        return Reading(Fault.BREAKS_OFF)
    if alignment.max(axis=1).mean() < LEGIBLE:
        return Reading(Fault.NONE if stopped else Fault.UNFINISHED, legible=False)
    path = _without_glances(alignment.argmax(axis=1), round(GLANCE / seconds_per_step))
    last = min(n_sounding, alignment.shape[1] - 1)
    at_end = np.flatnonzero(path >= last)
    lingers = len(at_end) and (len(path) - at_end[0]) * seconds_per_step > LINGER
    faults = [Fault.NONE]
    if lingers:
        faults.append(Fault.RUNS_ON)
        # What follows is cut away, and need not be judged.
        path = path[: at_end[0] + 1]
    elif not stopped:
        faults.append(Fault.UNFINISHED)
    elif path[-1] < last - min(SLACK, max(2, last // 2)):
        faults.append(Fault.BREAKS_OFF)
    if (np.maximum.accumulate(path) - path).max() > SLACK:
        faults.append(Fault.REPEATS)
    if np.diff(path, prepend=0).max() > SLACK:
        faults.append(Fault.SKIPS)
    return Reading(max(faults), int(at_end[0]) if lingers else None)


def cut_behind(end: int, loudness: np.ndarray, seconds_per_step: float) -> int:
    """The number of steps to keep of an utterance that reached its end on step `end`.

    Args:
        end: as in `Reading`.
        loudness: any measure that grows with it, [steps].
        seconds_per_step: duration of a decoder step.
    """
    first = end + max(1, round(CUT_AFTER / seconds_per_step))
    window = loudness[first : end + max(1, round(CUT_BEFORE / seconds_per_step)) + 1]
    return first + int(window.argmin()) if len(window) else len(loudness)


def _without_glances(path: np.ndarray, width: int) -> np.ndarray:
    """Running median over `width` steps, or one more to make them odd."""
    half = width // 2
    padded = np.pad(path, half, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1), axis=1).astype(np.int64)
