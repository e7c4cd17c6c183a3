"""GPU time, as pytest-benchmark is to see it.

A round is one replay of a CUDA graph that holds many calls, between two events: the host takes no part in it and
nothing waits after a launch. The calls go through several sets of inputs and outputs in turn, so many that a set
has left the L2 cache when its turn comes again. What looks at the device from the host cannot be in a graph: it is
timed as a run of calls on the stream, still between two events.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

ROUND_SECONDS = 2e-3  # a round at least: the events resolve half a microsecond
TIMED_SECONDS = 0.3  # of all rounds together
WARM_SECONDS = 0.1  # before them: the clock of an idle GPU is slow
FEWEST_ROUNDS, MOST_ROUNDS = 7, 50
MOST_CALLS_IN_A_ROUND = 400
CACHE_TIMES = 3  # the sets together are so many times the L2 cache
MOST_SETS = 128

Call = Callable[[], object]


class GpuClock:
    """The timer given to pytest-benchmark: shows the seconds per call that were measured so far, summed up."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


CLOCK = GpuClock()


def sets_needed(bytes_per_call: int, cache_bytes: int) -> int:
    """How many sets of inputs and outputs to go through, so that each is cold when its turn comes."""
    return min(MOST_SETS, max(1, math.ceil(CACHE_TIMES * cache_bytes / max(1, bytes_per_call))))


def cache_bytes() -> int:
    return torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size


def event_seconds(work: Call) -> float:
    """The GPU time of what `work` launches, in seconds.

    The write before it evicts the L2 cache, and keeps the GPU busy until the host has launched the work.
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
        calls: how many they are.
        method: 'graph', or 'stream' and why.
        seconds: that a round took when it was tried.
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
    """A round of the calls in turn, which all compute the same on sets of tensors of their own.

    Args:
        calls: run on the current stream, which must not be the default one; so must have been what they rest on,
            such as the forward pass of a backward.
        capturable: False for calls that are known to look at the device from the host.
    """
    for call in calls:  # compiles, and fills every cache
        call()
    torch.cuda.synchronize()
    in_turn = _InTurn(calls)
    seconds = event_seconds(lambda: in_turn.run(len(calls))) / len(calls)
    repeats = min(math.ceil(ROUND_SECONDS / (seconds * len(calls))), MOST_CALLS_IN_A_ROUND // len(calls))
    n = len(calls) * max(1, repeats)
    method, launch = "graph", None
    if not capturable or _waits_for_the_device(calls[0]):
        method = "stream: the host waits for the device"
    elif _capturing.broken:
        method = "stream: a capture failed before"
    else:
        try:
            launch = _captured(in_turn, n)
        except RuntimeError as error:
            _capturing.give_up()
            method = f"stream: {' '.join(str(error).split())[:120]}"
    if launch is None:

        def launch() -> None:
            in_turn.run(n)

    launch()
    return Round(launch, n, method, event_seconds(launch))


def time_rounds(benchmark, timed: Round) -> None:
    """Hands the times of the rounds to pytest-benchmark, whose timer must be `CLOCK`."""

    def round_() -> None:
        CLOCK.seconds += timed.seconds_per_call()

    benchmark.pedantic(round_, rounds=timed.rounds, warmup_rounds=timed.warm_rounds)


def median_seconds(calls: Sequence[Call], capturable: bool = True) -> float:
    """Median seconds per call, without pytest-benchmark; arguments as of `prepare_round`."""
    timed = prepare_round(calls, capturable)
    for _ in range(timed.warm_rounds):
        timed.launch()
    return statistics.median(timed.seconds_per_call() for _ in range(timed.rounds))


class _InTurn:
    """Runs calls one after the other and keeps the last result of each, so that each has its own memory."""

    def __init__(self, calls: Sequence[Call]):
        self.calls = calls
        self.kept: list[object] = [None] * len(calls)

    def run(self, n: int) -> None:
        for i in range(n):
            slot = i % len(self.calls)
            self.kept[slot] = None
            self.kept[slot] = self.calls[slot]()


class _Capturing:
    """Whether graphs can be captured: a capture that failed leaves the allocator unable to start another."""

    broken = False

    def give_up(self) -> None:
        self.broken = True
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(generator.clone_state())  # the old state believes that it is in a capture


_capturing = _Capturing()


def _captured(in_turn: _InTurn, n: int) -> Call:
    graph = torch.cuda.CUDAGraph()
    in_turn.kept = [None] * len(in_turn.calls)
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        in_turn.run(n)

    def replay(_outputs=in_turn) -> None:  # the outputs live in the graph's memory, as long as it does
        graph.replay()

    return replay


def _waits_for_the_device(call: Call) -> bool:
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
