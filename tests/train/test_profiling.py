"""The trace of some steps: which steps, what it holds, and what happens if it cannot be written."""

import gzip
import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from fastglow import FastglowError
from fastglow.train import profiling
from fastglow.train.profiling import SKIPPED, StepProfiler, costliest
from fastglow.train.stopwatch import Stopwatch

from .conftest import files_of_at_most

CPU = torch.device("cpu")
FIRST = 100  # iteration of the first step


@pytest.fixture(autouse=True)
def _logging(caplog):
    caplog.set_level(logging.INFO)


def run(out, n_steps, iterations, error=None, device=CPU):
    """Steps of which each multiplies a matrix of as many rows as its number in the run."""
    watch = Stopwatch(device)
    with StepProfiler(out, n_steps, device) as profiler:
        for i in range(FIRST, FIRST + iterations):
            watch.lap("model")
            torch.ones(i, 3, device=device) @ torch.ones(3, 7, device=device)
            watch.lap("optimizer")
            watch.stop()
            profiler.step(i)
        if error is not None:
            raise error


def events(path):
    with gzip.open(path) as file:
        return json.load(file)["traceEvents"]


def recorded(path):
    """The numbers of the recorded steps."""
    return [event["args"]["Input Dims"][0][0] for event in events(path) if event["name"] == "aten::mm"]


def test_records_the_steps_after_the_first(tmp_path, caplog):
    run(tmp_path, 3, SKIPPED + 10)
    first = FIRST + SKIPPED
    path = tmp_path / "profile" / f"trace_{first}-{first + 2}.json.gz"
    assert os.listdir(tmp_path) == ["profile"] and os.listdir(path.parent) == [path.name]
    assert recorded(path) == [first, first + 1, first + 2]
    ranges = [event["name"] for event in events(path) if event.get("cat") == "user_annotation"]
    assert ranges.count("model") == ranges.count("optimizer") == 3
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    heading, *table = record.getMessage().splitlines()
    assert heading == f"trace of 3 steps: {path}"
    assert table[0].split() == ["ms", "share", "calls", "operation"]
    (row,) = (line.split() for line in table if line.endswith("aten::mm"))
    assert row[2] == "3" and float(row[0]) > 0
    assert not any(line.endswith((" model", " optimizer")) for line in table)
    assert not torch.autograd._profiler_enabled()


@pytest.mark.parametrize("steps", [1, 4])
def test_a_run_that_ends_early_keeps_what_was_recorded(tmp_path, caplog, steps):
    run(tmp_path, 5, SKIPPED + steps)
    first = FIRST + SKIPPED
    (path,) = (tmp_path / "profile").iterdir()
    assert path.name == f"trace_{first}-{first + steps - 1}.json.gz"
    assert recorded(path) == list(range(first, first + steps))
    assert caplog.records[0].levelno == logging.WARNING
    assert caplog.records[0].getMessage().startswith(f"the run ended after {steps} of the 5 steps to profile")


@pytest.mark.parametrize("iterations", [0, 1, SKIPPED - 1, SKIPPED])
def test_a_run_that_ends_before_the_first_step_writes_nothing(tmp_path, caplog, iterations):
    run(tmp_path, 5, iterations)
    assert not list(tmp_path.iterdir())
    (record,) = caplog.records
    assert record.getMessage().startswith("the run ended after 0 of the 5 steps to profile")
    assert not torch.autograd._profiler_enabled()


def test_a_run_that_fails_keeps_what_was_recorded(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, 5, SKIPPED + 2, ZeroDivisionError())
    (path,) = (tmp_path / "profile").iterdir()
    assert len(recorded(path)) == 2


def test_off(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(profiling, "profile", None)
    run(tmp_path, 0, 20)
    assert not list(tmp_path.iterdir()) and not caplog.records


def test_a_full_disk(tmp_path):
    message = r"^.*trace_105-105.json.gz cannot be written: .*no whole trace.*$"
    with files_of_at_most(500), pytest.raises(FastglowError, match=message):
        run(tmp_path, 1, SKIPPED + 1)
    assert not list((tmp_path / "profile").iterdir())
    assert not torch.autograd._profiler_enabled()


@pytest.mark.parametrize("written", [None, "", '{"traceEvents": [{"ph":', "x" * 100 + "{}}\n, "])
def test_a_trace_that_is_cut_short(tmp_path, monkeypatch, written):
    def export(self, path):
        if written is not None:
            Path(path).write_text(written)

    monkeypatch.setattr(profiling.profile, "export_chrome_trace", export)
    with pytest.raises(FastglowError, match="no whole trace"):
        run(tmp_path, 1, SKIPPED + 1)
    assert not list((tmp_path / "profile").iterdir())


def test_a_full_disk_does_not_hide_the_runs_own_error(tmp_path, caplog):
    (tmp_path / "profile").write_text("in the way")
    with pytest.raises(FastglowError, match="profile.* cannot be written: .*File exists"):
        run(tmp_path, 1, SKIPPED + 1)
    with pytest.raises(FastglowError, match="cannot be written"):
        run(tmp_path, 2, SKIPPED + 1)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, 2, SKIPPED + 1, ZeroDivisionError())
    assert "cannot be written" in caplog.records[-1].getMessage()


@pytest.mark.parametrize("on_gpu", [False, True])
def test_the_table_lists_the_costliest_of_one_device(on_gpu):
    """An operation's time on the GPU is also its kernel's, which must not count twice."""

    def event(key, device, cpu, gpu, is_user_annotation=False):
        times = {"self_cpu_time_total": cpu, "self_device_time_total": gpu}
        return SimpleNamespace(key=key, device_type=device, count=2, is_user_annotation=is_user_annotation, **times)

    kernels = [event(f"kernel{i}", DeviceType.CUDA, 0.0, 100.0 * i) for i in (2, 1, 7)]
    operations = [event(f"aten::{i}", DeviceType.CPU, 1000.0 * i, 1000.0) for i in range(1, 16)]
    ranges = [event("model", device, 1e6, 1e6, True) for device in (DeviceType.CPU, DeviceType.CUDA)]
    recorded = SimpleNamespace(key_averages=lambda: [*ranges, *kernels, *operations])
    rows = [line.split() for line in costliest(recorded, on_gpu).splitlines()[1:]]
    if on_gpu:
        assert rows == [
            ["0.70", "70%", "2", "kernel7"],
            ["0.20", "20%", "2", "kernel2"],
            ["0.10", "10%", "2", "kernel1"],
        ]
    else:
        assert [row[3] for row in rows] == [f"aten::{i}" for i in range(15, 5, -1)]
        assert rows[0] == ["15.00", "12%", "2", "aten::15"]


@pytest.mark.gpu
def test_a_gpu(tmp_path, caplog):
    run(tmp_path, 2, SKIPPED + 2, device=torch.device("cuda"))
    (path,) = (tmp_path / "profile").iterdir()
    assert [event for event in events(path) if event.get("cat") == "kernel"]
    assert len(caplog.records[-1].getMessage().splitlines()) > 2
