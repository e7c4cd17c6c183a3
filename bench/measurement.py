"""One benchmark: verify the result, time it, compare the time with the machine's ceilings."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

from . import environment, memory, timing
from .ceilings import Ceilings, measure_ceilings
from .workload import COMPILE, EAGER, FASTGLOW, PEER, Implementation, Workload

Rounds = Sequence[tuple[float, Ceilings]]
"""Seconds and the ceilings that they are held against."""

Ratios = dict[str, dict[str, list[float]]]
"""By implementation and dtype: its time over ours in each round."""


@dataclass(frozen=True)
class Contender:
    """A verified implementation of a workload, to be timed in turn with others."""

    workload: Workload
    implementation: Implementation
    error: float
    function: Callable[[], object]
    memory: dict[str, int | None]

    def __call__(self) -> None:
        with self.implementation.active():
            self.function()


@dataclass(frozen=True)
class Measurement:
    """
    Attributes:
        implementations: on a CPU, those that are timed in turn.
        seconds: on a CPU, for all rounds.
    """

    benchmark: BenchmarkFixture
    ceilings: Ceilings | None
    implementations: Sequence[Implementation]
    seconds: float

    def __call__(self, workload: Workload, direction: str, implementation: Implementation) -> None:
        """Verifies the result, then times the workload unless --benchmark-disable is on.

        Raises:
            AssertionError: a result is wrong. On a CPU the others have been timed.
        """
        self.benchmark.group = f"{workload.op} {workload.name} {direction}"
        failures: list[str] = []
        try:
            if self.benchmark.disabled or self.ceilings is None:
                with implementation.active():
                    workload.verify(implementation, direction)
                    self.benchmark.pedantic(workload.call(implementation, direction))
            elif environment.has_gpu() and not workload.in_turn:
                self._measure(self.ceilings, workload, direction, implementation)
            else:
                failures = self._measure_in_turn(workload, direction)
        except BaseException:
            self.benchmark.has_error = True  # also on an interrupt: a partial measurement must not be saved
            raise
        assert not failures, "\n".join(failures)

    def _measure(self, ceilings: Ceilings, workload: Workload, direction: str, implementation: Implementation) -> None:
        with implementation.active():
            error = workload.verify(implementation, direction)
            how = self._time(workload, direction, implementation)
        assert self.benchmark.stats is not None
        rounds = [(self.benchmark.stats.stats.median, ceilings)]
        self.benchmark.extra_info.update(_info(workload, direction, implementation, error, rounds), **how)

    def _time(self, workload: Workload, direction: str, implementation: Implementation) -> dict:
        used = _memory(workload, implementation)
        calls: list[Callable[[], object]] = []

        def first() -> None:
            calls.append(workload.call(implementation, direction))
            calls[0]()

        used["peak_memory_bytes"] = memory.peak_bytes(first)
        n = timing.sets_needed(workload.cost(direction).bytes, timing.cache_bytes())
        calls += [workload.call(implementation, direction) for _ in range(n - 1)]
        timed = timing.prepare_round(calls, workload.capturable(direction))
        timing.time_rounds(self.benchmark, timed)
        return {"method": timed.method, **used, "sets": n, "calls_per_round": timed.calls}

    def _measure_in_turn(self, workload: Workload, direction: str) -> list[str]:
        """Times fastglow's implementation and all others, in this and the other precisions, and the machine's ceilings;
        returns what failed."""
        contenders, failures = [], []
        for of in (workload, *workload.beside()):
            for implementation in self.implementations:
                if not of.offers(implementation.name):
                    continue
                try:
                    contenders.append(_contender(of, implementation, direction))
                except Exception as error:
                    if not contenders:  # fastglow's own
                        raise
                    failures.append(f"{of.name} {implementation.name}: {error}")
        ceilings: list[Ceilings] = []

        def measure_again() -> None:
            assert self.ceilings is not None
            ceilings.append(measure_ceilings(environment.device()) if workload.bounded else self.ceilings)

        *rounds, _ = timing.time_in_turn([*contenders, measure_again], self.seconds)
        timing.record(self.benchmark, rounds[0])
        infos = []
        for contender, taken in zip(contenders, rounds, strict=True):
            of_rounds = list(zip(taken, ceilings, strict=True))
            info = _info(contender.workload, direction, contender.implementation, contender.error, of_rounds)
            info |= {"method": "host, in turn", **contender.memory, "median": statistics.median(taken)}
            if contender.implementation.name == FASTGLOW:
                info["ratios"] = ratios = _ratios(taken, contenders, rounds)
                of_peer = ratios.get(PEER, {}).get("float32")
                info["times_peer"] = of_peer and statistics.median(of_peer)
            infos.append(info)
        self.benchmark.extra_info.update(infos[0], in_turn=infos[1:])
        return failures


def _contender(workload: Workload, implementation: Implementation, direction: str) -> Contender:
    with implementation.active():
        error = workload.verify(implementation, direction)
        used = _memory(workload, implementation)
        made: list[Callable[[], object]] = []

        def first() -> None:
            made.append(workload.call(implementation, direction))

        if used["activation_bytes"] is None:
            first()
        else:
            used["peak_memory_bytes"] = memory.peak_bytes(first)  # of a training step, which the call has made
        (function,) = made
        if implementation.name in (FASTGLOW, COMPILE):
            function()  # packs its weights, or compiles
    return Contender(workload, implementation, error, function, used)


def _memory(workload: Workload, implementation: Implementation) -> dict[str, int | None]:
    """activation_bytes: the peak of a forward and backward pass above all that is there before it: weights,
    gradients, batch."""
    passes = workload.passes(implementation)
    if passes is None:
        return {"activation_bytes": None, "peak_memory_bytes": None}
    passes()  # makes the gradients, which are none of its memory
    return {"activation_bytes": memory.peak_bytes(passes), "peak_memory_bytes": None}


def _ratios(ours: Sequence[float], contenders: Sequence[Contender], rounds: Sequence[Sequence[float]]) -> Ratios:
    found: Ratios = {}
    for contender, taken in zip(contenders, rounds, strict=True):
        of_implementation = found.setdefault(contender.implementation.name, {})
        of_implementation[contender.workload.dtype_name] = [b / a for a, b in zip(ours, taken, strict=True)]
    return found


def _info(
    workload: Workload, direction: str, implementation: Implementation, error: float, rounds: Rounds
) -> dict[str, Any]:
    """What to record of a benchmark, whatever it was timed with."""
    return {
        **environment.describe(),
        "op": workload.op,
        "case": workload.name,
        "direction": direction,
        "implementation": implementation.name,
        "dtype": workload.dtype_name,
        "shapes": workload.shapes(),
        "error": error,
        "targets": workload.targets(direction),
        "implementations": [name for name in (FASTGLOW, EAGER) if workload.supports(name)],
        **workload.details(),
        **_rates(workload, direction, rounds),
    }


def _rates(workload: Workload, direction: str, rounds: Rounds) -> dict[str, Any]:
    seconds = statistics.median(taken for taken, _ in rounds)
    cost, samples = workload.cost(direction), workload.samples(direction)
    spoken = workload.audio_seconds(direction)
    frames, steps = workload.frames(direction), workload.steps(direction)

    def percent(floor: Callable[[Ceilings], float]) -> float:
        return statistics.median(100 * floor(ceilings) / taken for taken, ceilings in rounds)

    ceilings = rounds[0][1]
    has_bfloat16 = "bfloat16" in ceilings.flops_per_second
    return {
        "bytes": cost.bytes,
        "flops": cost.flops,
        "gigabytes_per_second": cost.bytes / seconds / 1e9,
        "teraflops_per_second": cost.flops / seconds / 1e12,
        "bound": ceilings.floor(cost, workload.ceiling)[1],
        "percent_of_ceiling": percent(lambda of: of.floor(cost, workload.ceiling)[0]),
        "percent_of_memory_rate": percent(lambda of: cost.bytes / of.memory_rate(cost)) if cost.reread else None,
        "percent_of_bfloat16_ceiling": (
            percent(lambda of: cost.flops / of.flops_per_second["bfloat16"]) if has_bfloat16 else None
        ),
        "samples_per_second": samples and samples / seconds,
        "milliseconds": 1e3 * seconds,
        "times_real_time": spoken and spoken / seconds,
        "frames_per_second": frames and frames / seconds,
        "us_per_frame": steps and 1e6 * seconds / steps,
    }
