"""One benchmark: verify the result, time it, compare the time with the machine's ceilings."""

from dataclasses import dataclass

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from . import environment, timing
from .ceilings import Ceilings
from .workload import EAGER, FASTGLOW, Implementation, Workload


@dataclass(frozen=True)
class Measurement:
    benchmark: BenchmarkFixture
    ceilings: Ceilings | None

    def __call__(self, workload: Workload, direction: str, implementation: Implementation) -> None:
        """Verifies the result, then times the workload unless --benchmark-disable is on."""
        self.benchmark.group = f"{workload.op} {workload.name} {direction}"
        try:
            with implementation.active():
                error = workload.verify(implementation, direction)
                if self.benchmark.disabled or self.ceilings is None:
                    self.benchmark.pedantic(workload.call(implementation, direction))
                    return
                how = self._time(workload, direction, implementation)
                rates = self._rates(self.ceilings, workload, direction)
        except BaseException:
            self.benchmark.has_error = True  # also on an interrupt: a partial measurement must not be saved
            raise
        self.benchmark.extra_info.update(
            environment.describe(),
            op=workload.op,
            case=workload.name,
            direction=direction,
            implementation=implementation.name,
            dtype=workload.dtype_name,
            shapes=workload.shapes(),
            error=error,
            targets=workload.targets(direction),
            implementations=[name for name in (FASTGLOW, EAGER) if workload.supports(name)],
            **workload.details(),
            **how,
            **rates,
        )

    def _time(self, workload: Workload, direction: str, implementation: Implementation) -> dict:
        if not environment.has_gpu():
            return {
                "method": "host",
                "peak_memory_bytes": None,
                **self._time_on_a_cpu(workload, direction, implementation),
            }
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        calls = [workload.call(implementation, direction)]
        calls[0]()
        peak = torch.cuda.max_memory_allocated() - before
        n = timing.sets_needed(workload.cost(direction).bytes, timing.cache_bytes())
        calls += [workload.call(implementation, direction) for _ in range(n - 1)]
        timed = timing.prepare_round(calls, workload.capturable(direction))
        timing.time_rounds(self.benchmark, timed)
        return {"method": timed.method, "peak_memory_bytes": peak, "sets": n, "calls_per_round": timed.calls}

    def _time_on_a_cpu(self, workload: Workload, direction: str, implementation: Implementation) -> dict:
        other = workload.beside()
        if other is None:
            self.benchmark(workload.call(implementation, direction))
            return {}
        call, call_other = (x.call(implementation, direction) for x in (workload, other))
        seconds, ratios = timing.time_in_turn(self.benchmark, call, call_other)
        return {"beside": {"case": other.name, "seconds": seconds, "ratios": ratios}}

    def _rates(self, ceilings: Ceilings, workload: Workload, direction: str) -> dict:
        assert self.benchmark.stats is not None
        seconds = self.benchmark.stats.stats.median
        cost, samples = workload.cost(direction), workload.samples(direction)
        spoken = workload.audio_seconds(direction)
        frames, steps = workload.frames(direction), workload.steps(direction)
        floor, bound = ceilings.floor(cost, workload.ceiling)
        matrix_rate = ceilings.flops_per_second.get("bfloat16")
        return {
            "bytes": cost.bytes,
            "flops": cost.flops,
            "gigabytes_per_second": cost.bytes / seconds / 1e9,
            "teraflops_per_second": cost.flops / seconds / 1e12,
            "bound": bound,
            "percent_of_ceiling": 100 * floor / seconds,
            "percent_of_bfloat16_ceiling": matrix_rate and 100 * cost.flops / seconds / matrix_rate,
            "samples_per_second": samples and samples / seconds,
            "milliseconds": 1e3 * seconds,
            "times_real_time": spoken and spoken / seconds,
            "frames_per_second": frames and frames / seconds,
            "us_per_frame": steps and 1e6 * seconds / steps,
        }
