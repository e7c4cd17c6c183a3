"""Where the time of a training step goes."""

import time

import torch
from torch.profiler import record_function


class Stopwatch:
    """Splits a step's time into named laps, which are also ranges of that name in a torch.profiler trace.

        watch.lap("data")  # ends the lap before it, if there is one
        watch.lap("model")
        watch.stop()
        loss.item()  # the loop's own synchronisation
        watch.seconds()  # {"data": ..., "model": ...}

    On a GPU the laps are those of the current stream, marked by events: the host waits for nothing, and a lap in which
    the host keeps the GPU waiting, such as "data", counts the GPU's wait. Elsewhere they are the host's.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._device = device
        self._names: list[str | None] = []  # of what begins at each mark; None: of nothing
        self._times: list[float] = []  # of the marks, by the host's clock
        self._events: list[torch.cuda.Event] = []  # the marks on the GPU; kept from step to step
        self._range: record_function | None = None

    def lap(self, name: str) -> None:
        """Begins a lap; those of the same name add up."""
        self._mark(name)
        self._range = record_function(name)
        self._range.__enter__()

    def stop(self) -> None:
        """Ends the last lap, before the loop synchronises."""
        self._mark(None)

    def seconds(self) -> dict[str, float]:
        """The laps since the last call, after `stop` and after the caller has synchronised.

        Raises:
            RuntimeError: the GPU has not come to the end of the last lap.
        """
        assert not self._names or self._names[-1] is None, "stop() comes first"
        totals: dict[str, float] = {}
        for i, name in enumerate(self._names):
            if name is not None:
                totals[name] = totals.get(name, 0.0) + self._elapsed(i)
        self.reset()
        return totals

    def reset(self) -> None:
        """Forgets the laps so far, such as the wait for a batch at the end of the data."""
        self._end_range()
        self._names.clear()
        self._times.clear()

    def _mark(self, name: str | None) -> None:
        self._end_range()
        if self._on_gpu:
            if len(self._names) == len(self._events):
                self._events.append(torch.cuda.Event(enable_timing=True))
            self._events[len(self._names)].record(torch.cuda.current_stream(self._device))
        else:
            self._times.append(time.perf_counter())
        self._names.append(name)

    def _end_range(self) -> None:
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None

    def _elapsed(self, i: int) -> float:
        if self._on_gpu:
            return self._events[i].elapsed_time(self._events[i + 1]) / 1e3  # from milliseconds
        return self._times[i + 1] - self._times[i]
