"""Decodes symbols to mels, and retries faulty utterances with other seeds."""

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import numpy as np
from torch import Tensor

from .reading import Fault, Reading, judge, steps_to_keep
from .seeds import attempt_seed

MAX_ATTEMPTS = 4
# The first decoding of a sentence has a step limit for very slow speech, 4 symbols per second; usual are 10 to 15. A
# sentence that does not end within it is decoded again with a limit of max_decoder_steps.
SECONDS_PER_SYMBOL, EXTRA_SECONDS = 0.25, 3.0


@dataclass(frozen=True)
class Task:
    """A sentence to decode.

    Attributes:
        symbols: ids.
        n_sounding: number of symbols up to the last that has a sound.
        seed: of the first attempt.
    """

    symbols: list[int]
    n_sounding: int
    seed: int


@dataclass(frozen=True)
class Utterance:
    """The decoded sentence.

    Attributes:
        mel: log-mel, [n_mel_channels, frames], on the model's device.
        alignment: attention weights, float32 [decoder steps, symbols].
        stopped, readings, cut: as in `Sentence`.
        reading: of the attempt that it is.
    """

    mel: Tensor
    alignment: np.ndarray
    stopped: bool
    readings: tuple[Reading, ...]
    cut: bool
    reading: Reading

    @property
    def fault(self) -> Fault:
        return self.reading.fault

    @property
    def attempts(self) -> int:
        return len(self.readings)


class Decoded(NamedTuple):
    """One decoding of a sentence; `stopped`: whether the gate fired."""

    mel: Tensor  # [n_mel_channels, frames]
    alignment: np.ndarray  # float32 [steps, symbols]
    stopped: bool


class _Attempt(NamedTuple):
    decoded: Decoded
    reading: Reading


class Attempts:
    """The attempts at one sentence: says what to decode next, and which attempt was the best.

    Decode with `seed` and `limit` and `record` the result, until `done`.

    Args:
        task: the sentence.
        seconds_per_step: duration of a decoder step.
        max_steps: the decoder's step limit.

    Attributes:
        task: as given.
        limit: step limit of the next decoding.
    """

    def __init__(self, task: Task, seconds_per_step: float, max_steps: int):
        self.task = task
        self.limit = _first_limit(len(task.symbols), seconds_per_step, max_steps)
        self._seconds_per_step, self._max_steps = seconds_per_step, max_steps
        self._next = list(range(MAX_ATTEMPTS))
        self._made: dict[int, _Attempt] = {}
        self._postponed: dict[int, Reading] = {}

    @property
    def done(self) -> bool:
        return not self._next

    @property
    def seed(self) -> int:
        """Of the next decoding."""
        return attempt_seed(self.task.seed, self._next[0])

    def record(self, decoded: Decoded) -> None:
        """Takes the next decoding. One that does not end within a lower limit is to be decoded again."""
        reading = judge(decoded.alignment, self.task.n_sounding, decoded.stopped, self._seconds_per_step)
        if reading.fault >= Fault.UNFINISHED and self.limit < self._max_steps:
            self.limit = self._max_steps
            return
        self._made[self._next.pop(0)] = _Attempt(decoded, reading)
        if not _another_seed_may_help(reading, len(self._readings())):
            self._next = [i for i in self._next if reading.fault and i in self._postponed]

    def settle(self) -> None:
        """Ends the attempts: what was decoded has been spoken."""
        self._next = []

    def postpone(self, fault: Fault) -> None:
        """Puts an attempt with this certain fault off; it is decoded only if the others are faulty, too."""
        attempt = self._next.pop(0)
        self._next.append(attempt)
        self._postponed[attempt] = Reading(fault)

    def best(self) -> Utterance:
        """The earliest of the least wrong attempts, cut if it does not end."""
        (mel, alignment, stopped), reading = min(
            (self._made[i] for i in sorted(self._made)), key=lambda attempt: attempt.reading.rank
        )
        readings = self._readings()
        if reading.end is None:
            return Utterance(mel, alignment, stopped, readings, False, reading)
        loudness = mel.float().mean(dim=0).view(len(alignment), -1).mean(dim=1).cpu().numpy()
        n_steps = steps_to_keep(reading.end, loudness, self._seconds_per_step)
        n_frames = n_steps * (mel.shape[1] // len(alignment))
        return Utterance(mel[:, :n_frames], alignment[:n_steps], False, readings, True, reading)

    def _readings(self) -> tuple[Reading, ...]:
        known = self._postponed | {i: attempt.reading for i, attempt in self._made.items()}
        return tuple(known[i] for i in sorted(known))


def _another_seed_may_help(reading: Reading, n_attempts: int) -> bool:
    """False if the text needs more steps, or if no attempt had legible attention."""
    if not reading.legible:
        return n_attempts > 1  # an earlier attempt was legible
    return reading.fault not in (Fault.NONE, Fault.TOO_LONG)


def _first_limit(n_symbols: int, seconds_per_step: float, most: int) -> int:
    return min(most, ceil((EXTRA_SECONDS + SECONDS_PER_SYMBOL * n_symbols) / seconds_per_step))
