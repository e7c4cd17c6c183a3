"""Times calls, two implementations in turn, within a budget of seconds. Loads no torch."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from fastglow.errors import FastglowError

REPEATS = 3
"""Of each call, where the budget allows."""
MOST_REPEATS = 25
SEEDS_TRIED = 4


class Outcome(NamedTuple):
    """What a call has made.

    Attributes:
        samples: of audio, without the pauses between sentences.
        mel_frames: of its mel.
        acoustic_seconds, vocoder_seconds: as in `Speech.timings`.
        sentences: how many.
        attempts: decodings of them.
        faulty: sentences of which every attempt had a fault.
        close: frees what the call holds; not timed.
    """

    samples: int = 0
    mel_frames: int = 0
    acoustic_seconds: float = 0.0
    vocoder_seconds: float = 0.0
    sentences: int = 0
    attempts: int = 0
    faulty: int = 0
    close: Callable[[], None] = lambda: None

    @property
    def retries(self) -> int:
        """Decodings beyond the first of each sentence, and faults that remain."""
        return self.attempts - self.sentences + self.faulty


@dataclass
class Passage:
    """Texts that one call speaks, with the seed that all calls use.

    Attributes:
        outcomes: of the calls that chose the seed, by implementation; empty before.
    """

    texts: tuple[str, ...]
    seed: int = 1
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @property
    def characters(self) -> int:
        return sum(map(len, self.texts))


@dataclass(frozen=True)
class Case:
    """A call to time.

    Attributes:
        measure: 'latency', 'first_sound', 'throughput' or 'load'.
        call: speaks the passage, given a seed.
        passage: None for a call that does not speak; it is timed with one implementation.
        seconds: of a call that does not speak, about.
    """

    measure: str
    call: Callable[[int], Outcome]
    passage: Passage | None = None
    seconds: float = 0.0

    @property
    def chooses_seed(self) -> bool:
        return self.measure in ("latency", "throughput")

    @property
    def title(self) -> str:
        if self.passage is None:
            return "load the voice"
        if self.measure == "throughput":
            return f"batch of {len(self.passage.texts)}"
        return f"text to {'last sample' if self.chooses_seed else 'first sound'}, {self.passage.characters} characters"


class Implementation(NamedTuple):
    """What runs the operations: `active` is entered around each call."""

    name: str
    active: Callable[[], AbstractContextManager]


class Meter(Protocol):
    def begin(self) -> None:
        """Waits for the device and forgets the peak so far."""

    def peak_bytes(self) -> int | None:
        """The most memory since `begin`; None if it cannot be told."""


class Sample(NamedTuple):
    """A timed call."""

    seconds: float
    outcome: Outcome
    peak_bytes: int | None


@dataclass
class Measured:
    """A case's runs.

    Attributes:
        warm: the last call of the warm-up, by implementation.
        runs: the timed calls by implementation, in the order of the rounds.
    """

    case: Case
    warm: dict[str, Sample]
    runs: dict[str, list[Sample]]

    @property
    def n_rounds(self) -> int:
        return min(map(len, self.runs.values()))

    @property
    def cost(self) -> float:
        """Seconds of the last round."""
        return sum(self.runs[name][-1].seconds if self.runs[name] else self.warm[name].seconds for name in self.warm)


class LeftOut(NamedTuple):
    case: Case
    reason: str


@dataclass(frozen=True)
class Results:
    """
    Attributes:
        implementations: names of those that ran; only the first if it ran what the others are.
        first_call_seconds: of the first call, which loads and compiles.
        seconds: from the beginning to the end.
    """

    measured: list[Measured]
    left_out: list[LeftOut]
    implementations: list[str]
    first_call_seconds: float
    seconds: float


class Benchmark:
    """Measures cases.

    Args:
        cases: in ascending order of their costs; the first one speaks.
        implementations: the first is measured, beside the others.
        budget: seconds, the first call and what later first calls compile not included.
        meter: measures memory.
        clock: seconds.
        ran_reference: whether the first call, by the first implementation, has run what the others are.
        n_warm_up: calls before those that count.
        too_large: exceptions of a call that needs more memory than there is.
        on_call: told of each call's case before it begins, and of the seconds spent.
    """

    def __init__(
        self,
        cases: list[Case],
        implementations: list[Implementation],
        budget: float,
        meter: Meter,
        clock: Callable[[], float],
        *,
        ran_reference: Callable[[], bool],
        n_warm_up: int = 1,
        too_large: tuple[type[BaseException], ...] = (MemoryError,),
        on_call: Callable[[Case, float], None] = lambda case, seconds: None,
    ):
        self.cases = cases
        self.implementations = implementations
        self.budget = budget
        self.meter = meter
        self.clock = clock
        self.ran_reference = ran_reference
        self.n_warm_up = n_warm_up
        self.too_large = too_large
        self.on_call = on_call
        self.measured: list[Measured] = []
        self.left_out: list[LeftOut] = []
        self._free_seconds = 0.0  # not counted against the budget
        self._reserved = 0.0  # for the rounds of the cases so far

    def run(self) -> Results:
        """Measures. Raises FastglowError if not even the first case has enough memory."""
        self._started = self.clock()
        try:
            first = self._call(self.cases[0], self.implementations[0], seed=1)
        except self.too_large as error:
            raise FastglowError(
                f"there is not enough memory for {self.cases[0].title}: end other programs, or use another --device"
            ) from error
        self._free_seconds += first.seconds
        if self.ran_reference():
            self.implementations = self.implementations[:1]
        for case in self.cases:
            self._admit(case)
        while (found := self._next()) is not None:
            self._run_round(found)
        for found in [found for found in self.measured if not found.n_rounds]:
            self.measured.remove(found)
            self.left_out.append(LeftOut(found.case, _cost(found.cost)))
        names = [implementation.name for implementation in self.implementations]
        return Results(self.measured, self.left_out, names, first.seconds, self.clock() - self._started)

    @property
    def _left(self) -> float:
        return self.budget + self._free_seconds - (self.clock() - self._started)

    def _admit(self, case: Case) -> None:
        """Warms a case up if its rounds, and those of the cases before it, fit into the budget."""
        expected = self._expected_cost(case)
        if expected is None:
            self.left_out.append(LeftOut(case, "its text was left out"))
            return
        # The first case is measured in any case.
        n_rounds = next((n for n in range(REPEATS, 0, -1) if self._fits(expected * (n + self.n_warm_up))), 0)
        if not n_rounds and self.measured:
            self.left_out.append(LeftOut(case, _cost(expected)))
            return
        try:
            warm = self._warm_up(case)
        except self.too_large:
            self.left_out.append(LeftOut(case, "there is not enough memory"))
            return
        self.measured.append(Measured(case, warm, {name: [] for name in warm}))
        self._reserved += n_rounds * self.measured[-1].cost

    def _fits(self, seconds: float) -> bool:
        return self._reserved + seconds <= self._left

    def _expected_cost(self, case: Case) -> float | None:
        """Seconds of a round, from those of other cases; None if this one needs the seed of a case left out."""
        if case.passage is None:
            return case.seconds
        if case.chooses_seed:
            known = [found for found in self.measured if found.case.chooses_seed]
            costs = [found.cost / found.case.passage.characters for found in known[-1:] if found.case.passage]
            return case.passage.characters * costs[0] if costs else 0.0
        same = [found.cost for found in self.measured if found.case.passage is case.passage]
        return same[0] if same else None

    def _warm_up(self, case: Case) -> dict[str, Sample]:
        """The samples of the last round before those that count."""
        first = warm = self._round(case)
        n_rounds = 1
        if case.chooses_seed and case.passage is not None:
            warm, n_rounds = self._choose_seed(case.passage, case, first)
        for _ in range(self.n_warm_up - n_rounds):
            warm = self._round(case)
        if self.n_warm_up > 1:  # the first round has compiled
            self._free_seconds += max(0.0, _seconds(first) - _seconds(warm))
        return warm

    def _choose_seed(self, passage: Passage, case: Case, first: dict[str, Sample]) -> tuple[dict[str, Sample], int]:
        """Takes the first seed with which nothing is decoded again, or the best of those tried.

        Returns:
            the samples with it, and how many rounds in a row had it.
        """
        tried = {passage.seed: first}
        while min(map(_retries, tried.values())) and len(tried) < SEEDS_TRIED and self._fits(_seconds(first)):
            passage.seed += 1
            tried[passage.seed] = self._round(case)
        last, passage.seed = passage.seed, min(tried, key=lambda seed: _retries(tried[seed]))
        warm = tried[passage.seed]
        passage.outcomes = {name: sample.outcome for name, sample in warm.items()}
        return warm, int(passage.seed == last)

    def _next(self) -> Measured | None:
        """The case with the fewest rounds of those whose next one fits; None at the end."""
        left = self._left
        waiting = [
            found
            for found in self.measured
            if found.n_rounds < MOST_REPEATS
            and (found.cost <= left or (found is self.measured[0] and not found.n_rounds))
        ]
        return min(waiting, key=lambda found: found.n_rounds, default=None)

    def _run_round(self, found: Measured) -> None:
        for name, sample in self._round(found.case).items():
            found.runs[name].append(sample)

    def _round(self, case: Case) -> dict[str, Sample]:
        seed = case.passage.seed if case.passage else 0
        runs_on = self.implementations if case.passage else self.implementations[:1]
        return {implementation.name: self._call(case, implementation, seed) for implementation in runs_on}

    def _call(self, case: Case, implementation: Implementation, seed: int) -> Sample:
        self.on_call(case, self.clock() - self._started)
        self.meter.begin()
        with implementation.active():
            start = self.clock()
            outcome = case.call(seed)
            seconds = self.clock() - start
            outcome.close()
        return Sample(seconds, outcome, self.meter.peak_bytes())


def _seconds(samples: dict[str, Sample]) -> float:
    return sum(sample.seconds for sample in samples.values())


def _retries(samples: dict[str, Sample]) -> int:
    return sum(sample.outcome.retries for sample in samples.values())


def _cost(seconds: float) -> str:
    return f"a round takes about {f'{seconds:.0f}' if seconds >= 10 else f'{seconds:.2g}'} s"
