"""Detects from attention and stop gate whether an utterance covers its text from beginning to end.

`judge` sees the whole utterance, `Watch` what has been decoded of it.
"""

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
# up to 0.6.
MAX_TAIL = 1.0
# Allowed seconds without progress within the text. Correct utterances of the bundled voice take up to 0.6, at commas.
MAX_STALL = 1.2
# Speech after a longer stall is not kept, in seconds: the drone is worse than the loss.
LONGEST_STALL = 3.0
# An utterance that does not end is cut at its quietest step between these times, in seconds after it reached the end
# of the text or, if it never did, after its last progress.
CUT_AFTER, CUT_BEFORE = 0.1, 0.3


class Fault(IntEnum):
    """What is wrong with an utterance, in order of severity.

    STALLS: attention made no progress for a while, then went on. BREAKS_OFF: the gate fired before the end of the text.
    UNFINISHED: the step limit was reached, but not the end of the text. TOO_LONG: the same, although attention advanced
    steadily.
    """

    NONE = 0
    RUNS_ON = 1
    STALLS = 2
    REPEATS = 3
    SKIPS = 4
    BREAKS_OFF = 5
    UNFINISHED = 6
    TOO_LONG = 7

    @property
    def label(self) -> str | None:
        """The name in lower case; None for NONE."""
        return self.name.lower() if self else None


@dataclass(frozen=True)
class Reading:
    """The result of `judge`.

    Attributes:
        fault: the worst.
        end: the step that reached the end of the text, or else the furthest symbol, if the utterance goes on for too
            long after it: it can be cut there.
        legible: whether the attention points at symbols; if not, UNFINISHED is the only fault that can be detected.
        unread: number of sounding symbols after the furthest that attention reached.
    """

    fault: Fault
    end: int | None = None
    legible: bool = True
    unread: int = 0

    @property
    def rank(self) -> tuple[bool, Fault, int]:
        """Sort key: the better of two attempts has the lower rank. Without its end, a text had best be read far."""
        return not self.legible, min(self.fault, Fault.BREAKS_OFF), self.unread


def judge(alignment: np.ndarray, n_sounding: int, stopped: bool, seconds_per_step: float) -> Reading:
    """Finds the faults of one utterance.

    Args:
        alignment: attention weights, float [steps, symbols], up to the step on which the gate fired or the limit.
        n_sounding: number of symbols up to the last that has a sound; the final marks follow.
        stopped: whether the gate fired.
        seconds_per_step: duration of a decoder step.
    """
    if not len(alignment):
        return Reading(Fault.BREAKS_OFF, unread=n_sounding)
    if not _is_legible(alignment.max(axis=1), seconds_per_step):
        return Reading(Fault.NONE if stopped else Fault.UNFINISHED, legible=False)
    width = _excursion(seconds_per_step)
    path = _running_median(np.pad(alignment.argmax(axis=1), width, mode="edge"), width)
    end = _arrival(path, n_sounding)
    if end is None and n_sounding > 1:
        # Attention may stay on the last sounding symbol and never reach the final mark.
        end = _arrival(path, n_sounding - 1)
    arrived = end is not None and not _gives_up(_first_read(path[: end + 1]), seconds_per_step)
    if end is None or not arrived:
        end = _last_progress(_first_read(path), seconds_per_step)
    lingers = (len(path) - end) * seconds_per_step > MAX_TAIL
    faults = [Fault.NONE]
    if lingers:
        faults.append(Fault.RUNS_ON if arrived else Fault.BREAKS_OFF if stopped else Fault.UNFINISHED)
        path = path[: end + 1]  # the rest will be cut
    elif not stopped:
        faults.append(Fault.TOO_LONG)
    elif path[-1] < n_sounding - _max_jump(n_sounding):
        faults.append(Fault.BREAKS_OFF)
    faults.append(_fault_on_the_way(path, _first_read(path), seconds_per_step))
    return Reading(max(faults), end if lingers else None, unread=max(0, n_sounding - 1 - int(path.max())))


class Watch:
    """Follows an utterance while it is decoded, for a stream: what can be spoken, and whether it is faulty.

    Args:
        n_sounding, seconds_per_step: as for `judge`.

    Attributes:
        fault: the worst that is certain: whatever follows, `judge` will find this or another fault. NONE while the
            utterance may still be right.
    """

    def __init__(self, n_sounding: int, seconds_per_step: float):
        self.fault = Fault.NONE
        self._n_sounding, self._seconds_per_step = n_sounding, seconds_per_step
        self._positions, self._path = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._heights = np.zeros(0, np.float32)
        self._safe = 0

    def push(self, alignment: np.ndarray) -> int:
        """Takes the next steps, and returns how many steps from the start can be spoken; it never falls.

        None can before MIN_PEAK_SECONDS are known. Whatever follows, `judge` and `steps_to_keep` keep these steps, if
        the attention is legible by then. While it is not, all steps can be spoken. If it becomes legible later, nothing
        further can be spoken until attention progresses, and the cut may lie before steps that have been spoken: then
        cut at once.

        Args:
            alignment: attention weights, float [new steps, symbols], without the step on which the gate fires.
        """
        if not len(alignment):
            return self._safe
        self._positions = np.concatenate((self._positions, alignment.argmax(axis=1)))
        self._heights = np.concatenate((self._heights, alignment.max(axis=1)))
        n_steps = len(self._positions)
        if n_steps < _least_steps(self._seconds_per_step):
            return 0  # neither legibility nor a fault can be told, and a faulty beginning had best not be heard
        if _is_legible(self._heights, self._seconds_per_step):
            n_steps = min(n_steps, self._earliest_end() + _shortest_tail(self._seconds_per_step))
        self._safe = max(self._safe, n_steps)
        return self._safe

    def _earliest_end(self) -> int:
        """A lower bound of `Reading.end` over all continuations; sets `fault`."""
        self._settle()
        path, n_steps = self._path, len(self._positions)
        if not len(path):
            return 0
        arrival = _first_arrival(path, self._n_sounding)
        on_the_way = path if arrival is None else path[: arrival + 1]
        first_read = _first_read(on_the_way)
        self.fault = _fault_on_the_way(on_the_way, first_read, self._seconds_per_step)
        if arrival is not None and not _gives_up(first_read, self._seconds_per_step):
            if (n_steps - arrival) * self._seconds_per_step > MAX_TAIL:
                self.fault = max(self.fault, Fault.RUNS_ON)
            return arrival
        # Attention may never go on, stay on the last sounding symbol, or stay on the marks after it.
        ends = [_last_progress(first_read, self._seconds_per_step), _arrival(path, self._n_sounding)]
        if self._n_sounding > 1:
            ends.append(_arrival(path, self._n_sounding - 1))
        return min(end for end in ends if end is not None)

    def _settle(self) -> None:
        """Extends the path by the steps whose running median is complete."""
        width = _excursion(self._seconds_per_step)
        padded = np.pad(self._positions, (width, 0), mode="edge")[len(self._path) :]
        if len(padded) > 2 * width:
            self._path = np.concatenate((self._path, _running_median(padded, width)))


def steps_to_keep(end: int, loudness: np.ndarray, seconds_per_step: float) -> int:
    """The number of steps to keep of an utterance that is cut after step `end`.

    Args:
        end: as in `Reading`.
        loudness: any increasing function of the loudness, [steps].
        seconds_per_step: duration of a decoder step.
    """
    first = end + _shortest_tail(seconds_per_step)
    window = loudness[first : end + max(1, round(CUT_BEFORE / seconds_per_step)) + 1]
    return first + int(window.argmin()) if len(window) else len(loudness)


def _shortest_tail(seconds_per_step: float) -> int:
    return max(1, round(CUT_AFTER / seconds_per_step))


def _excursion(seconds_per_step: float) -> int:
    return round(MAX_EXCURSION / seconds_per_step)


def _least_steps(seconds_per_step: float) -> int:
    return max(1, round(MIN_PEAK_SECONDS / seconds_per_step))


def _is_legible(heights: np.ndarray, seconds_per_step: float) -> bool:
    means = heights.cumsum() / np.arange(1, len(heights) + 1)
    return bool(means[min(_least_steps(seconds_per_step), len(means)) - 1 :].max() >= MIN_PEAK)


def _running_median(padded: np.ndarray, width: int) -> np.ndarray:
    """The median of each step and of `width` steps on either side; removes excursions of up to `width` steps."""
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * width + 1)
    return np.median(windows, axis=1).astype(np.int64)


def _first_read(path: np.ndarray) -> np.ndarray:
    """The steps that first read each symbol that is read, ascending. A small leap reads what it passes over."""
    moves = np.diff(path, prepend=path[0])[:, None]
    passed = np.arange(MAX_JUMP)
    is_read = (passed == 0) | ((passed < moves) & (moves <= MAX_JUMP))
    _, firsts = np.unique((path[:, None] - passed)[is_read], return_index=True)
    return np.sort(is_read.nonzero()[0][firsts])


def _gives_up(first_read: np.ndarray, seconds_per_step: float) -> bool:
    return bool((np.diff(first_read) * seconds_per_step > LONGEST_STALL).any())


def _last_progress(first_read: np.ndarray, seconds_per_step: float) -> int:
    """The last step that read a further symbol, before any stall of more than LONGEST_STALL. A shorter stall is over
    when more than MAX_JUMP symbols have been read after it: attention that loops or wanders may creep on.
    """
    waits = np.diff(first_read) * seconds_per_step
    last = int((waits > LONGEST_STALL).argmax()) if _gives_up(first_read, seconds_per_step) else len(waits)
    for i in np.flatnonzero(waits[:last] > MAX_STALL)[::-1]:
        if last - i <= MAX_JUMP:
            last = i
    return int(first_read[last])


def _fault_on_the_way(path: np.ndarray, first_read: np.ndarray, seconds_per_step: float) -> Fault:
    read = np.maximum.accumulate(path)
    if np.diff(read, prepend=0).max() > MAX_JUMP:
        return Fault.SKIPS
    if (read - path).max() > MAX_JUMP:
        return Fault.REPEATS
    still = np.diff(first_read, append=len(path) - 1).max()
    return Fault.STALLS if still * seconds_per_step > MAX_STALL else Fault.NONE


def _arrival(path: np.ndarray, last: int) -> int | None:
    """The step that reaches symbol `last` after most of the text; else the step from which attention stays there."""
    first = _first_arrival(path, last)
    return int(_comings(path, last)[-1]) if first is None and path[-1] >= last else first


def _first_arrival(path: np.ndarray, last: int) -> int | None:
    """The step that reaches symbol `last` after most of the text. What follows cannot change it."""
    for step in _comings(path, last):
        read = np.unique(np.concatenate(([0], path[:step], [last])))
        leaps = np.diff(read)
        if leaps[leaps > _max_jump(last)].sum() <= last / 2:
            return int(step)
    return None


def _comings(path: np.ndarray, last: int) -> np.ndarray:
    """The steps that enter symbol `last` or a later one."""
    there = path >= last
    return np.flatnonzero(there & ~np.concatenate(([False], there[:-1])))


def _max_jump(n_symbols: int) -> int:
    return min(MAX_JUMP, max(2, n_symbols // 2))
