"""Times for pytest-benchmark, by a clock of our own.

On a CPU implementations are timed in turn, so that the machine's changing speed affects all alike.

On a GPU a round is one replay of a CUDA graph of many calls, timed by two events: no host time, no sync after a launch.
The calls rotate over several sets of inputs and outputs, enough that each set has left the L2 cache when it is used
again. A call with a host sync cannot be captured: it is timed as a run of launches, also between two events.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fastglow.kernels.graphs import stop_recording_random_numbers

ROUND_SECONDS = 2e-3  # at least: events resolve half a microsecond
TIMED_SECONDS = 0.3  # all rounds together
WARM_SECONDS = 0.1  # before them: an idle GPU clocks down
FEWEST_ROUNDS, MOST_ROUNDS = 7, 50
MAX_CALLS_PER_ROUND = 400
CACHE_TIMES = 3  # total size of all sets, in multiples of the L2 cache
MAX_SETS = 128
FEWEST_IN_TURN, MOST_IN_TURN = 3, 25

Call = Callable[[], object]


class Clock:
    """The timer given to pytest-benchmark: the sum of all measured seconds per call."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


CLOCK = Clock()


def sets_needed(bytes_per_call: int, cache_bytes: int) -> int:
    """How many sets of inputs and outputs to rotate over, so that none is in the cache when used."""
    return min(MAX_SETS, max(1, math.ceil(CACHE_TIMES * cache_bytes / max(1, bytes_per_call))))


def cache_bytes() -> int:
    return torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size


def event_seconds(work: Call) -> float:
    """GPU time of what `work` launches, in seconds.

    The write before it evicts the L2 cache and keeps the GPU busy until the host has launched everything.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.empty(4 * cache_bytes(), dtype=torch.uint8, device="cuda").zero_()
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


@dataclass(frozen=True)
class Round:
    """
    Attributes:
        launch: launches the calls of one round.
        calls: calls per round.
        method: 'graph', or 'stream: <reason>'.
        seconds: what one trial round took.
    """

    launch: Call
    calls: int
    method: str
    seconds: float

    def seconds_per_call(self) -> float:
        return event_seconds(self.launch) / self.calls

    @property
    def rounds(self) -> int:
        return min(MOST_ROUNDS, max(FEWEST_ROUNDS, int(TIMED_SECONDS / self.seconds)))

    @property
    def warm_rounds(self) -> int:
        return min(MOST_ROUNDS, max(2, int(WARM_SECONDS / self.seconds)))


def prepare_round(calls: Sequence[Call], capturable: bool = True) -> Round:
    """A round that rotates over the calls, which compute the same on different tensors.

    Args:
        calls: run on the current stream, which must not be the default stream; work they depend on, such as the
            forward pass before a backward, must have run on it too.
        capturable: False for calls known to sync with the host.
    """
    for call in calls:  # compiles, and fills all caches of tables and graphs
        call()
    torch.cuda.synchronize()
    rotation = Rotation(calls)
    seconds = event_seconds(lambda: rotation.run(len(calls))) / len(calls)
    repeats = min(math.ceil(ROUND_SECONDS / (seconds * len(calls))), MAX_CALLS_PER_ROUND // len(calls))
    n = len(calls) * max(1, repeats)
    method = "graph"
    launch: Call | None = None
    if not capturable or syncs_with_the_host(calls[0]):
        method = "stream: host sync"
    elif capturing.broken:
        method = "stream: an earlier capture failed"
    else:
        try:
            launch = capture(rotation, n)
        except RuntimeError as error:
            capturing.give_up()
            method = f"stream: {' '.join(str(error).split())[:120]}"
    launch = launch or (lambda: rotation.run(n))
    launch()
    return Round(launch, n, method, event_seconds(launch))


def time_rounds(benchmark: BenchmarkFixture, timed: Round) -> None:
    """Reports the rounds to pytest-benchmark, whose timer must be `CLOCK`."""

    def round_() -> None:
        CLOCK.seconds += timed.seconds_per_call()

    benchmark.pedantic(round_, rounds=timed.rounds, warmup_rounds=timed.warm_rounds)


def time_in_turn(calls: Sequence[Call], limit: float) -> list[list[float]]:
    """Each call's seconds in every round, on a CPU; a round makes all calls.

    Args:
        limit: no round starts after so many seconds, but FEWEST_IN_TURN are made.
    """
    taken: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + limit
    while len(taken[0]) < FEWEST_IN_TURN or (len(taken[0]) < MOST_IN_TURN and time.perf_counter() < end):
        for call, seconds in zip(calls, taken, strict=True):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return taken


def record(benchmark: BenchmarkFixture, rounds: Sequence[float]) -> None:
    """Reports measured seconds to pytest-benchmark, whose timer must be `CLOCK`."""
    left = iter(rounds)

    def round_() -> None:
        CLOCK.seconds += next(left)

    benchmark.pedantic(round_, rounds=len(rounds))


def median_seconds(calls: Sequence[Call], capturable: bool = True) -> float:
    """Median seconds per call, without pytest-benchmark; arguments as `prepare_round`."""
    timed = prepare_round(calls, capturable)
    for _ in range(timed.warm_rounds):
        timed.launch()
    return statistics.median(timed.seconds_per_call() for _ in range(timed.rounds))


class Rotation:
    """Runs calls in turn and holds the last result of each, so that each has its own memory."""

    def __init__(self, calls: Sequence[Call]):
        self.calls = calls
        self.kept: list[object] = [None] * len(calls)

    def run(self, n: int) -> None:
        for i in range(n):
            slot = i % len(self.calls)
            self.kept[slot] = None
            self.kept[slot] = self.calls[slot]()


class Capturing:
    """Whether graphs can be captured: after a failed capture the allocator cannot start another."""

    broken = False

    def give_up(self) -> None:
        self.broken = True
        stop_recording_random_numbers(torch.cuda.current_device())


capturing = Capturing()


def capture(rotation: Rotation, n: int) -> Call:
    graph = torch.cuda.CUDAGraph()
    rotation.kept = [None] * len(rotation.calls)
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        rotation.run(n)

    def replay(_outputs: Rotation = rotation) -> None:  # holds the outputs, which are in the graph's memory
        graph.replay()

    return replay


def syncs_with_the_host(call: Call) -> bool:
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False
