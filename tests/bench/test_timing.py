"""How rounds are built, with a fake GPU; which errors of results are accepted."""

from types import SimpleNamespace

import pytest
import torch

from bench import timing
from bench.ceilings import Ceilings
from bench.workload import BACKWARD, FORWARD, Cost, largest_error

MILLION = 10**6


@pytest.fixture
def gpu(monkeypatch):
    """A call takes `gpu.seconds`; captures work unless `gpu.fails`."""

    class Gpu:
        seconds, syncs, fails, given_up = 1e-4, False, False, 0
        calls = 0

        def call(self):
            self.calls += 1

        def event_seconds(self, work):
            before = self.calls
            work()
            return (self.calls - before) * self.seconds

        def capture(self, rotation, n):
            if self.fails:
                raise RuntimeError("operation not\npermitted")
            return lambda: rotation.run(n)

        def give_up(self, capturing):
            capturing.broken = True
            self.given_up += 1

    fake = Gpu()
    monkeypatch.setattr(timing, "capturing", timing.Capturing())
    monkeypatch.setattr(timing.Capturing, "give_up", lambda self: fake.give_up(self))
    monkeypatch.setattr(timing, "event_seconds", fake.event_seconds)
    monkeypatch.setattr(timing, "capture", fake.capture)
    monkeypatch.setattr(timing, "syncs_with_the_host", lambda call: fake.syncs)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return fake


@pytest.mark.parametrize(
    "bytes_per_call, sets", [(500 * MILLION, 1), (150 * MILLION, 1), (149 * MILLION, 2), (50 * MILLION, 3), (8, 128)]
)
def test_all_sets_are_three_times_the_cache(bytes_per_call, sets):
    assert timing.sets_needed(bytes_per_call, 50 * MILLION) == sets


def test_a_round_is_whole_rotations_of_two_milliseconds(gpu):
    timed = timing.prepare_round([gpu.call] * 3)
    assert timed.method == "graph"
    assert timed.calls == 21  # 7 rotations of 0.3 ms
    assert timed.seconds == pytest.approx(21 * gpu.seconds)
    assert timed.seconds_per_call() == pytest.approx(gpu.seconds)
    assert timing.FEWEST_ROUNDS <= timed.rounds <= timing.MOST_ROUNDS


def test_a_long_call_is_a_round(gpu):
    gpu.seconds = 0.25
    timed = timing.prepare_round([gpu.call])
    assert (timed.calls, timed.rounds, timed.warm_rounds) == (1, timing.FEWEST_ROUNDS, 2)


def test_every_call_keeps_its_own_result(gpu):
    results = iter(range(100))
    rotation = timing.Rotation([lambda: next(results)] * 3)
    rotation.run(7)
    assert rotation.kept == [6, 4, 5]


def test_a_call_with_a_host_sync_is_not_captured(gpu):
    gpu.syncs = True
    assert timing.prepare_round([gpu.call]).method == "stream: host sync"
    gpu.syncs = False
    assert timing.prepare_round([gpu.call], capturable=False).method.startswith("stream")
    assert timing.prepare_round([gpu.call]).method == "graph"


def test_after_a_failed_capture_no_other_is_tried(gpu):
    gpu.fails = True
    assert timing.prepare_round([gpu.call]).method == "stream: operation not permitted"
    gpu.fails = False
    assert timing.prepare_round([gpu.call]).method == "stream: an earlier capture failed"
    assert gpu.given_up == 1


def test_the_clock_shows_seconds_per_call(gpu):
    class Benchmark:
        def pedantic(self, target, rounds, warmup_rounds):
            self.times = []
            for _ in range(rounds):
                start = timing.CLOCK()
                target()
                self.times.append(timing.CLOCK() - start)

    benchmark = Benchmark()
    timing.time_rounds(benchmark, timing.prepare_round([gpu.call] * 2))
    assert benchmark.times == pytest.approx([gpu.seconds] * timing.MOST_ROUNDS)


def test_the_bound_is_the_slower_ceiling():
    ceilings = Ceilings(1e12, {"float16": 1e14})
    assert ceilings.floor(Cost(10**9, 10**9), "float16") == (pytest.approx(1e-3), "memory")
    assert ceilings.floor(Cost(10**9, 10**12), "float16") == (pytest.approx(1e-2), "arithmetic")
    assert ceilings.floor(Cost(10**9, 10**12), "float64") == (pytest.approx(1e-3), "memory")


def test_the_error_bound_is_a_multiple_of_pytorchs_error():
    exact = torch.randn(1000, dtype=torch.float64)

    def off_by(error):
        return (exact * (1 + error)).float()

    assert largest_error([off_by(1.9e-3)], [off_by(1e-3)], [exact], FORWARD) == pytest.approx(1.9e-3, rel=1e-3)
    with pytest.raises(AssertionError, match="relative error of 0.0021"):
        largest_error([off_by(2.1e-3)], [off_by(1e-3)], [exact], FORWARD)
    largest_error([off_by(2.9e-3)], [off_by(1e-3)], [exact], BACKWARD)
    largest_error([off_by(1e-7)], [exact.float()], [exact], FORWARD)  # rounding is allowed where PyTorch's error is 0
    for wrong in (torch.full_like(exact, float("nan")), exact[:-1]):
        with pytest.raises(AssertionError):
            largest_error([wrong.float()], [off_by(1e-3)], [exact], FORWARD)


@pytest.mark.parametrize("scale, rounds", [(1.0, 3), (0.1, 17), (0.001, 25)])
def test_calls_in_turn(monkeypatch, scale, rounds):
    """With a clock that only the calls move: ten seconds, but neither too few rounds nor too many."""
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(timing, "time", clock)
    turns = []

    def call(name: str, seconds: float):
        def run() -> None:
            turns.append(name)
            clock.now += seconds * scale

        return run

    taken = timing.time_in_turn([call("a", 1.0), call("b", 3.0), call("c", 2.0)], limit=10.0)
    assert turns == ["a", "b", "c"] * rounds
    assert taken == [pytest.approx([seconds * scale] * rounds) for seconds in (1.0, 3.0, 2.0)]


def test_measured_seconds_are_recorded():
    class Benchmark:
        def pedantic(self, target, rounds):
            self.times = []
            for _ in range(rounds):
                start = timing.CLOCK()
                target()
                self.times.append(timing.CLOCK() - start)

    benchmark = Benchmark()
    timing.record(benchmark, [0.5, 0.25, 4.0])
    assert benchmark.times == pytest.approx([0.5, 0.25, 4.0])


def test_what_is_reread_is_read_at_the_rate_of_its_size():
    ceilings = Ceilings(1e9, {"float32": 1e12}, [(16, 4e9), (32, 2e9)])
    for reread, rate in ((None, 1e9), (8, 4e9), (16, 4e9), (31, 4e9), (32, 2e9), (99, 2e9)):
        assert ceilings.floor(Cost(10**9, 0, reread), "float32") == (pytest.approx(1e9 / rate), "memory")
    assert Ceilings(1e9, {}).floor(Cost(10**9, 0, 8), "float32") == (pytest.approx(1.0), "memory")
