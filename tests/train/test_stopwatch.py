"""Laps on the clocks of a host and of a GPU, both played here, and on a real GPU where there is one."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from fastglow.train import stopwatch
from fastglow.train.stopwatch import Stopwatch

from ..kernels.checks import host_syncs


class Machine:
    """A host and a GPU with clocks of their own: the host launches work and goes on, unless it synchronises."""

    def __init__(self):
        self.host = self.gpu = 100.0
        self.events = []
        self.streams = []

    def perf_counter(self):
        return self.host

    def wait(self, seconds):
        """The host alone is busy."""
        self.host += seconds

    def launch(self, seconds):
        self.gpu = max(self.gpu, self.host) + seconds

    def synchronize(self):
        self.host = max(self.host, self.gpu)

    def event(self, enable_timing):
        assert enable_timing
        self.events.append(Event(self))
        return self.events[-1]


class Event:
    def __init__(self, machine):
        self.machine = machine

    def record(self, stream):
        self.machine.streams.append(stream)
        self.time = max(self.machine.gpu, self.machine.host)

    def elapsed_time(self, later):
        if later.time > self.machine.host:
            raise RuntimeError("device not ready")
        return 1e3 * (later.time - self.time)


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(stopwatch, "time", machine)
    monkeypatch.setattr(torch.cuda, "Event", machine.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    return machine


def test_laps_on_a_cpu(machine):
    watch = Stopwatch(torch.device("cpu"))
    watch.lap("data")
    machine.wait(1)
    watch.lap("model")
    machine.wait(2)
    watch.lap("data")
    machine.wait(4)
    watch.lap("model")
    machine.wait(8)
    watch.lap("optimizer")
    machine.wait(16)
    watch.stop()
    machine.wait(32)  # logging
    assert watch.steps() == [({"data": 5, "model": 10, "optimizer": 16}, 0)]
    assert watch.steps() == []
    for seconds in (3, 7):
        watch.lap("model")
        machine.wait(seconds)
        watch.stop()
    assert watch.steps() == [({"model": 3}, 7), ({"model": 7}, 0)]
    assert not machine.events


def test_laps_on_a_gpu(machine):
    watch = Stopwatch(torch.device("cuda:1"))
    for _ in range(3):
        for _ in range(2):
            watch.lap("data")
            machine.wait(1)
            watch.lap("model")
            machine.launch(4)
            watch.lap("data")
            machine.wait(2)  # behind the GPU's back
            watch.lap("model")
            machine.launch(8)
            watch.lap("optimizer")
            machine.launch(0.5)
            watch.stop()
        assert machine.host < machine.gpu, "the host must not have waited"
        with pytest.raises(RuntimeError, match="not ready"):
            watch.steps()
        machine.synchronize()
        # In the first step the GPU idles while the host waits for data, in the second it still computes.
        first, second = {"data": 1, "model": 12, "optimizer": 0.5}, {"data": 0, "model": 12, "optimizer": 0.5}
        assert watch.steps() == [(first, 12.5), (second, 0)]
        machine.wait(10)  # validation
    assert len(machine.events) == 12, "events are used again"
    assert set(machine.streams) == {"stream of cuda:1"}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_is_between_a_stop_and_a_lap_does_not_count(machine, device):
    watch = Stopwatch(torch.device(device))
    watch.lap("data")
    machine.wait(1)
    watch.stop()
    machine.wait(50)
    watch.lap("model")
    machine.wait(2)
    watch.stop()
    assert [step.laps for step in watch.steps()] == [{"data": 1}, {"model": 2}]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_reset_forgets_a_wait_in_vain(machine, device):
    watch = Stopwatch(torch.device(device))
    watch.lap("data")
    machine.wait(1)
    watch.reset()
    machine.wait(50)  # validation, then the next epoch
    watch.lap("data")
    machine.wait(2)
    watch.stop()
    watch.lap("data")
    machine.wait(3)
    assert watch.steps() == [({"data": 2}, 0)]
    assert watch.steps() == []


def test_laps_are_ranges_of_a_trace():
    watch = Stopwatch(torch.device("cpu"))
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        watch.lap("data")
        torch.zeros(3).sin()
        watch.lap("model")
        torch.zeros(3).cos()
        watch.stop()
        torch.zeros(3).tan()
    events = {event.name: event.time_range for event in profiled.events()}

    def within(inner, outer):
        return events[outer].start <= events[inner].start and events[inner].end <= events[outer].end

    assert within("aten::sin", "data") and within("aten::cos", "model")
    assert not within("aten::cos", "data") and not within("aten::sin", "model")
    assert not within("aten::tan", "model") and not within("aten::tan", "data")


@pytest.mark.gpu
def test_laps_on_a_real_gpu():
    watch = Stopwatch(torch.device("cuda"))
    torch.cuda.synchronize()
    with host_syncs("error"):
        watch.lap("short")
        torch.cuda._sleep(1_000_000)
        watch.lap("long")
        torch.cuda._sleep(100_000_000)
        watch.stop()
    torch.cuda.synchronize()
    ((seconds, _),) = watch.steps()
    assert list(seconds) == ["short", "long"]
    assert seconds["long"] > seconds["short"] > 0
