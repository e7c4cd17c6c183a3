"""A benchmark on a CPU, with computations that only move a clock."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from bench import measurement, timing
from bench.ceilings import Ceilings
from bench.measurement import Measurement
from bench.workload import COMPILE, EAGER, FASTGLOW, INFERENCE, ORDINARY, PEER, Cost, Implementation, Workload
from fastglow.kernels import backend

ALL = [Implementation(name) for name in (FASTGLOW, EAGER, PEER, COMPILE)]
SECONDS = {
    ("bfloat16", FASTGLOW): [1.0, 2.0, 4.0],
    ("bfloat16", EAGER): [3.0, 4.0, 20.0],
    ("bfloat16", PEER): [2.0, 6.0, 4.0],
    ("float32", FASTGLOW): [2.0, 2.0, 2.0],
    ("float32", EAGER): [8.0, 8.0, 4.0],
    ("float32", PEER): [5.0, 12.0, 16.0],
}
ERRORS = {EAGER: 2e-3, FASTGLOW: 1e-3, PEER: 3e-3}


@dataclass(frozen=True)
class Waiting(Workload):
    """A call takes its next seconds."""

    clock: SimpleNamespace
    dtype: torch.dtype
    wrong: tuple[str, ...] = ()
    bounded: bool = True

    op, case, small, directions = "wait", "case", False, (INFERENCE,)

    def supports(self, implementation):
        return implementation != COMPILE

    def beside(self):
        return [] if self.dtype == torch.float32 else [replace(self, dtype=torch.float32)]

    def shapes(self):
        return {"x": [3]}

    def cost(self, direction):
        return Cost(2 * 10**9, 10**12)

    def targets(self, direction):
        return {"times_peer": 3}

    def call(self, implementation, direction):
        seconds = SECONDS[self.dtype_name, implementation.name]
        prepares = [0.0] if implementation.name == FASTGLOW else []
        left = iter(prepares + seconds)

        def run():
            assert (backend.backend_name() == backend.REFERENCE) == (implementation.name == EAGER)
            self.clock.now += next(left)

        return run

    def verify(self, implementation, direction):
        if f"{implementation.name} {self.dtype_name}" in self.wrong:
            raise AssertionError("result 0 is wrong")
        return ERRORS[implementation.name]


class Benchmark:
    """pytest-benchmark's fixture."""

    disabled = has_error = False

    def __init__(self):
        self.extra_info, self.data = {}, []

    def pedantic(self, target, rounds):
        for _ in range(rounds):
            start = timing.CLOCK()
            target()
            self.data.append(timing.CLOCK() - start)


@pytest.fixture
def clock(monkeypatch):
    made = SimpleNamespace(now=0.0, perf_counter=lambda: made.now)
    monkeypatch.setattr(timing, "time", made)
    monkeypatch.setattr(measurement.environment, "has_gpu", lambda: False)
    # The machine's speed changes: it copies 1, 0.5 and 2 GB/s in the three rounds.
    rates = iter([1e9, 0.5e9, 2e9])
    found = lambda device: Ceilings(next(rates), {"bfloat16": 2e12, "float32": 1e12})  # noqa: E731
    monkeypatch.setattr(measurement, "measure_ceilings", found)
    return made


def test_all_precisions_and_implementations_are_timed_in_turn(clock):
    benchmark = Benchmark()
    Measurement(benchmark, Ceilings(1e9, {}), ALL, 0.0)(Waiting(clock, torch.bfloat16), INFERENCE, ALL[0])
    info = benchmark.extra_info
    assert benchmark.data == pytest.approx([1.0, 2.0, 4.0])
    assert (info["op"], info["case"], info["implementation"]) == ("wait", "case-bfloat16", FASTGLOW)
    assert info["ratios"] == {
        FASTGLOW: {"bfloat16": [1.0, 1.0, 1.0], "float32": [2.0, 1.0, 0.5]},
        EAGER: {"bfloat16": [3.0, 2.0, 5.0], "float32": [8.0, 4.0, 1.0]},
        PEER: {"bfloat16": [2.0, 3.0, 1.0], "float32": [5.0, 6.0, 4.0]},
    }
    assert info["times_peer"] == 5.0
    # 2 GB: 2 of 1 s, 4 of 2 s, 1 of 4 s; the FLOPs take half a second.
    assert info["percent_of_ceiling"] == pytest.approx(200.0)
    assert info["percent_of_bfloat16_ceiling"] == pytest.approx(25.0)
    others = {(other["dtype"], other["implementation"]): other for other in info["in_turn"]}
    assert list(others) == list(SECONDS)[1:]
    assert [other["median"] for other in others.values()] == [4.0, 4.0, 2.0, 8.0, 12.0]
    assert others["float32", FASTGLOW]["ratios"][PEER]["float32"] == [2.5, 6.0, 8.0]
    assert others["float32", FASTGLOW]["times_peer"] == 6.0
    assert others["float32", PEER]["error"] == ERRORS[PEER]
    assert "ratios" not in others["float32", PEER]


@dataclass(frozen=True)
class Varying(Waiting):
    """Saves memory: a pass allocates 1 MiB, 3 without it."""

    varies: bool = True

    def passes(self, implementation):
        n = 3 if implementation.name == ORDINARY else 1
        return lambda: torch.empty(n * 2**18)

    def call(self, implementation, direction):
        torch.empty(2**20)
        name = FASTGLOW if implementation.name == ORDINARY else implementation.name
        run = super().call(Implementation(name), direction)
        if implementation.name == ORDINARY:
            run()  # what only the first implementation does, before it is timed
        return run

    def verify(self, implementation, direction):
        return 1e-3


@pytest.mark.filterwarnings("ignore")  # of the profiler
def test_memory_is_measured_and_the_ordinary_form_is_timed_in_turn(clock):
    benchmark, workload = Benchmark(), Varying(clock, torch.float32)
    assert workload.offers(ORDINARY) and not Waiting(clock, torch.float32).offers(ORDINARY)
    implementations = [*ALL, Implementation(ORDINARY)]
    Measurement(benchmark, Ceilings(1e9, {}), implementations, 0.0)(workload, INFERENCE, ALL[0])
    info = benchmark.extra_info
    others = {other["implementation"]: other for other in info["in_turn"]}
    assert (info["activation_bytes"], others[ORDINARY]["activation_bytes"]) == (2**20, 3 * 2**20)
    assert info["peak_memory_bytes"] == others[PEER]["peak_memory_bytes"] == 2**22
    assert info["ratios"][ORDINARY] == {"float32": [1.0, 1.0, 1.0]}


def test_ceilings_are_measured_in_each_round_only_where_they_count(clock):
    benchmark = Benchmark()
    of_the_run = Ceilings(1e9, {"bfloat16": 1e12})
    Measurement(benchmark, of_the_run, ALL, 0.0)(Waiting(clock, torch.bfloat16, bounded=False), INFERENCE, ALL[0])
    assert benchmark.extra_info["percent_of_ceiling"] == pytest.approx(100.0)  # 2 GB in 2 s


def test_a_wrong_result_of_another_fails_after_the_rest_is_recorded(clock):
    benchmark, workload = Benchmark(), Waiting(clock, torch.bfloat16, wrong=("peer float32", "eager bfloat16"))
    with pytest.raises(AssertionError) as caught:
        Measurement(benchmark, Ceilings(1e9, {}), ALL, 0.0)(workload, INFERENCE, ALL[0])
    assert str(caught.value).splitlines()[:2] == [
        "case-bfloat16 eager: result 0 is wrong",
        "case-float32 peer: result 0 is wrong",
    ]
    assert not benchmark.has_error  # pytest-benchmark saves it
    assert benchmark.extra_info["times_peer"] is None
    found = [(other["dtype"], other["implementation"]) for other in benchmark.extra_info["in_turn"]]
    assert found == [("bfloat16", PEER), ("float32", FASTGLOW), ("float32", EAGER)]


def test_a_wrong_result_of_ours_is_not_recorded(clock):
    benchmark, workload = Benchmark(), Waiting(clock, torch.bfloat16, wrong=("fastglow bfloat16",))
    with pytest.raises(AssertionError, match="result 0 is wrong"):
        Measurement(benchmark, Ceilings(1e9, {}), ALL, 0.0)(workload, INFERENCE, ALL[0])
    assert benchmark.has_error
    assert benchmark.extra_info == {}
