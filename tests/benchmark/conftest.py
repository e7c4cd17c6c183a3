"""A clock and a synthesizer that tests plant."""

from contextlib import contextmanager

import pytest

from fastglow.benchmark.measuring import Benchmark, Case, Implementation, Outcome, Passage


class Planted:
    """A clock that only calls advance, with the implementations and cases that run on it.

    Attributes:
        log: (title of the case, implementation, seed) of every call, in order.
        active: name of the implementation that is entered.
    """

    def __init__(self):
        self.now = 100.0
        self.log = []
        self.active = None
        self.events = []

    def clock(self):
        return self.now

    def begin(self):
        self.now += 0.001  # not a part of any call
        self.events.append("begin")

    def peak_bytes(self):
        return 7 if self.active is None else 0

    @contextmanager
    def entered(self, name):
        assert self.active is None
        self.active = name
        try:
            yield
        finally:
            self.active = None

    def implementations(self, *names):
        return [Implementation(name, lambda name=name: self.entered(name)) for name in names]

    def case(
        self, measure, characters, seconds, outcome=lambda seed: Outcome(100, 1, 0.1, 0.1), passage=None, n_texts=1
    ):
        """`seconds(implementation, number of the call)` is how long a call takes, `outcome(seed)` what it makes."""
        if measure != "load":
            passage = passage or Passage(("x" * characters,) * n_texts)
        n_calls = {}

        def close():
            self.now += 50.0  # not a part of the call
            self.events.append("close")

        def call(seed):
            i = n_calls[self.active] = n_calls.get(self.active, -1) + 1
            self.log.append((case.title, self.active, seed))
            self.events.append("call")
            self.now += seconds(self.active, i)
            return outcome(seed)._replace(close=close) if measure == "first_sound" else outcome(seed)

        case = Case(measure, call, passage)
        return case

    def run(self, cases, budget, names=("ours", "plain"), **options):
        options = {"ran_reference": lambda: False, **options}
        return Benchmark(cases, self.implementations(*names), budget, self, self.clock, **options).run()


@pytest.fixture
def planted():
    return Planted()
