"""Where the time of training steps goes."""

import time
from typing import NamedTuple

import torch
from torch.profiler import record_function


class StepTime(NamedTuple):
    """Of one step.

    Attributes:
        laps: seconds by name.
        ago: seconds from its end to that of the last step.
    """

    laps: dict[str, float]
    ago: float


class Stopwatch:
    """Splits the time of steps into named laps, which are also ranges of that name in a torch.profiler trace.

        for batch in batches:
            watch.lap("model")  # ends the lap before it, if there is one
            watch.lap("optimizer")
            watch.stop()
        losses.tolist()  # the loop's own synchronisation, after any number of steps
        watch.steps()  # one `StepTime` each

    On a GPU the laps are those of the current stream, marked by events: the host waits for nothing, and a lap in which
    the host keeps the GPU waiting, such as "data", counts the GPU's wait. Elsewhere they are the host's.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._device = device
        self._names: list[str | None] = []  # of what begins at each mark; None: the end of a step
        self._times: list[float] = []  # of the marks, by the host's clock
        self._events: list[torch.cuda.Event] = []  # the marks on the GPU; used again after `steps`
        self._range: record_function | None = None

    def lap(self, name: str) -> None:
        """Begins a lap; those of the same name in a step add up."""
        self._mark(name)
        self._range = record_function(name)
        self._range.__enter__()

    def stop(self) -> None:
        """Ends the last lap, and the step."""
        self._mark(None)

    def steps(self) -> list[StepTime]:
        """The steps since the last call, after the caller has synchronised; one that has not ended is forgotten.

        Raises:
            RuntimeError: the GPU has not come to the end of the last step.
        """
        steps: list[StepTime] = []
        laps: dict[str, float] = {}
        last = max((i for i, name in enumerate(self._names) if name is None), default=-1)
        for i, name in enumerate(self._names[: last + 1]):
            if name is None:
                steps.append(StepTime(laps, self._elapsed(i, last)))
                laps = {}
            else:
                laps[name] = laps.get(name, 0.0) + self._elapsed(i, i + 1)
        self.reset()
        return steps

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

    def _elapsed(self, i: int, j: int) -> float:
        if self._on_gpu:
            return self._events[i].elapsed_time(self._events[j]) / 1e3  # from milliseconds
        return self._times[j] - self._times[i]
