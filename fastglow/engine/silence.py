"""The silence around sentences: pauses that marks in the text ask for, and the sentence silence."""

from collections.abc import Iterator

import numpy as np

# Of silence that is handed out at once: ten seconds at usual rates.
MOST_SAMPLES = 220_500


class Silence:
    """How much silence stands around the audible sentences of a text.

    Where pause marks ask for pauses, it is their sum; else `between` seconds between two sentences. A text of which
    nothing is audible has none.
    """

    def __init__(self, between: float, sampling_rate: int):
        self._rate, self._between = sampling_rate, round(between * sampling_rate)
        self._asked: float | None = None
        self._given = 0
        self._begun = False

    def ask(self, seconds: float | None) -> None:
        """Adds a pause, if it is one."""
        if seconds is not None:
            self._asked = (self._asked or 0.0) + seconds

    def certain(self) -> int:
        """Samples of pauses that are due, whether audio follows or not."""
        if not self._begun or self._asked is None:
            return 0
        due, self._given = round(self._asked * self._rate) - self._given, round(self._asked * self._rate)
        return due

    def before_audio(self) -> int:
        """Samples that are due now that an audible sentence follows."""
        if self._asked is None:
            due = self._between if self._begun else 0
        else:
            due = round(self._asked * self._rate) - self._given
        self._asked, self._given, self._begun = None, 0, True
        return due


def zeros(n_samples: int) -> Iterator[np.ndarray]:
    """Silence, float32, in chunks of at most `MOST_SAMPLES`."""
    for start in range(0, n_samples, MOST_SAMPLES):
        yield np.zeros(min(MOST_SAMPLES, n_samples - start), np.float32)
