"""Commands under locks, and signals."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fastglow.errors import FastglowError
from voices import running
from voices.running import Runner, Stopped, options_of, shown

ROOT = Path(__file__).parents[2]

# Saves when it gets SIGTERM, but not before a file exists.
SAVING = """
import os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
def save(number, frame):
    while not (folder / "go").exists():
        time.sleep(0.01)
    (folder / "saved").write_text(signal.Signals(number).name)
    raise SystemExit
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, save)
(folder / "started").touch()
while True:
    time.sleep(0.01)
"""


def python(code, *arguments):
    return [sys.executable, "-S", "-c", code, *map(str, arguments)]


def wait_for(path):
    while not path.exists():
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_and_nothing_else_is_started(tmp_path, number):
    (tmp_path / "go").touch()

    def send():
        wait_for(tmp_path / "started")
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    with Runner() as runner:
        with pytest.raises(Stopped) as stopped:
            runner.call(python(SAVING, tmp_path))
        sender.join()
        with pytest.raises(Stopped):
            runner.call(python("", tmp_path))
    assert (tmp_path / "saved").read_text() == number.name
    assert stopped.value.exit_code == 128 + number
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_after_a_kill_the_command_saves_before_another_run_begins(tmp_path, monkeypatch):
    code = f"""
from pathlib import Path
from voices.running import Runner
with Runner() as runner, runner.locked(Path({str(tmp_path / "run")!r})):
    runner.call({python(SAVING, tmp_path)!r})
"""
    first = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_for(tmp_path / "started")
    first.kill()
    first.wait()
    monkeypatch.setattr(running, "say", lambda line: (tmp_path / "go").touch())
    try:
        with Runner().locked(tmp_path / "run"):
            assert (tmp_path / "saved").read_text() == "SIGTERM"
    finally:
        (tmp_path / "go").touch()


def test_locks(tmp_path, monkeypatch):
    waiting = []
    monkeypatch.setattr(running, "say", waiting.append)
    monkeypatch.setattr(running, "POLL_SECONDS", 0.0)
    one, other = Runner(), Runner()
    with one.locked(tmp_path / "voice", [tmp_path / "data"]), other.locked(tmp_path / "waveglow", [tmp_path / "data"]):
        other._stopped = signal.SIGTERM  # else it would wait for ever
        for path in ("voice", "data"):
            with pytest.raises(Stopped), other.locked(tmp_path / path):
                pass
    assert waiting == [f"waiting for another run that uses {tmp_path / name}" for name in ("voice", "data")]
    with one.locked(tmp_path / "data"):
        pass


def test_a_command_that_fails_is_named(tmp_path):
    with Runner() as runner:
        with pytest.raises(FastglowError, match="failed with exit code 3$"):
            runner.call(python("raise SystemExit(3)"))
        with pytest.raises(FastglowError, match="was killed by SIGKILL$"):
            runner.call(python("import os; os.kill(os.getpid(), 9)"))


def test_commands_run_at_the_lowest_priority(tmp_path):
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with Runner() as runner:
        runner.call(python("import os; assert os.getpriority(os.PRIO_PROCESS, 0) == 19"))
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_commands_are_shown_as_they_are_typed():
    assert shown([*running.FASTGLOW, "synth", "a b"]) == "fastglow synth 'a b'"
    assert shown([*running.PYTHON, "bench.voice"]) == "python -m bench.voice"


def test_values_become_options():
    values = {"n_flows": 4, "trim": True, "best": False, "exclude": ["a", "b"]}
    assert options_of(values) == ["--n-flows", "4", "--trim", "--exclude", "a", "--exclude", "b"]
    assert options_of({}) == []


def test_a_command_saves_when_its_time_is_up(tmp_path, monkeypatch):
    (tmp_path / "go").touch()

    class Popen(subprocess.Popen):
        def wait(self, timeout=None):
            if timeout is None:
                return super().wait()
            assert timeout == 100
            wait_for(tmp_path / "started")
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(running.subprocess, "Popen", Popen)
    with Runner() as runner:
        runner.call(python(SAVING, tmp_path), 100)
    assert (tmp_path / "saved").read_text() == "SIGTERM"
