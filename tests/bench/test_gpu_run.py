"""The steps of `make gpu`, with fake commands."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import environment, gpu
from bench.gpu import Step, run_all, steps


def python(code: str):
    return lambda limit: [sys.executable, "-S", "-c", code]


def test_a_failed_step_does_not_stop_the_others(tmp_path, capsys):
    todo = [Step("bad", python("print('one'); raise SystemExit(3)"), 1.0), Step("good", python("print('two')"), 1.0)]
    assert run_all(todo, tmp_path, time.monotonic() + 100) == {"bad": 3, "good": 0}
    assert [(tmp_path / f"{name}.log").read_text() for name in ("bad", "good")] == ["one\n", "two\n"]
    assert "bad: exit 3" in capsys.readouterr().out


@pytest.fixture
def clock(monkeypatch):
    """`clock.now`, in seconds, moves only when a test moves it."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def times_up(monkeypatch, log: Path, n: int) -> None:
    """The first `n` waits for a step time out once it has started; later ones wait for its end."""

    class Popen(subprocess.Popen):
        waits = 0

        def wait(self, timeout=None):
            self.waits += 1
            if self.waits > n:
                return super().wait()
            while self.poll() is None and b"started" not in log.read_bytes():
                time.sleep(0.01)
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(gpu.subprocess, "Popen", Popen)


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN], ids=["", "in the background"])
def test_a_step_is_interrupted_at_its_limit_and_can_write_its_results(tmp_path, monkeypatch, handler, clock):
    monkeypatch.setattr(gpu, "GRACE", 2.0)
    times_up(monkeypatch, tmp_path / "slow.log", 1)
    before = signal.signal(signal.SIGINT, handler)  # a background shell job ignores SIGINT, and so do its children
    code = """
import time
try:
    print("started", flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    print("saved")
"""
    try:
        codes = run_all([Step("slow", python(code), 1.0)], tmp_path, clock.now + 6)
    finally:
        signal.signal(signal.SIGINT, before)
    assert codes == {"slow": 1}
    log = (tmp_path / "slow.log").read_text()
    assert log == "started\n\nstopped after 4 s\nsaved\n"


def test_a_step_that_does_not_stop_is_killed(tmp_path, monkeypatch, clock):
    times_up(monkeypatch, tmp_path / "deaf.log", 2)
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('started', flush=True)\n"
    assert run_all([Step("deaf", python(code + "time.sleep(600)\nprint('done')"), 1.0)], tmp_path, clock.now) == {
        "deaf": 1
    }
    assert "done" not in (tmp_path / "deaf.log").read_text()


def test_unused_time_goes_to_later_steps(tmp_path, clock):
    limits = []

    def command(limit):
        limits.append(limit)
        clock.now += 10
        return [sys.executable, "-S", "-c", ""]

    run_all([Step("a", command, 1.0), Step("b", command, 2.0), Step("c", command, 1.0)], tmp_path, clock.now + 4000)
    assert limits == [1000, 3990 * 2 / 3, 3980]


def test_every_gpu_test_and_benchmark_is_run(tmp_path):
    commands = {step.name: step.command(100) for step in steps(tmp_path, "dle")}
    assert "tests/models/test_gpu.py" in commands["tests"]
    files = {path.stem for path in (environment.ROOT / "bench").glob("test_bench_*.py")}
    assert commands.keys() == files | {"tests"}
    assert commands["test_bench_waveglow"][-3:] == [
        f"--benchmark-json={tmp_path / 'test_bench_waveglow.json'}",
        "--time-limit=80",
        f"--peer-dle={Path('dle').resolve()}",
    ]


def test_the_files_of_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(environment, "has_gpu", lambda: True)
    monkeypatch.setattr(gpu, "steps", lambda out, peer: [Step("tests", python("raise SystemExit(1)"), 1.0)])
    assert gpu.main(["--out", str(tmp_path)]) == 1
    codes = json.loads((tmp_path / "steps.json").read_text())
    assert codes["tests"] == 1
    assert codes["report"] != 0  # nothing to report
    assert {path.name for path in tmp_path.iterdir()} == {"tests.log", "report.log", "steps.json"}
    assert "failed: tests, report" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu(capsys):
    assert gpu.main([]) == 2
    assert "no CUDA GPU" in capsys.readouterr().err
