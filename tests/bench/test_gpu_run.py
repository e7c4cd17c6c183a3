"""The steps of `make gpu`, with fake commands."""

import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import conftest, environment, gpu, journal
from bench.gpu import LEAST, SHORTEST, run_all, time_for
from bench.steps import PARTS, SECONDS_FILE, Step, expected, steps


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
    assert run_all([Step("deaf", python(code + "time.sleep(600)\nprint('done')"), 1.0)], tmp_path, clock.now + 30) == {
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
    todo = {step.name: step for step in steps(tmp_path, "dle")}
    assert "tests/models/test_gpu.py" in todo["tests-models-test_gpu"].command(100)
    files = {path.stem for path in (environment.ROOT / "bench").glob("test_bench_*.py")} - IN_PARTS.keys()
    in_parts = {f"{file}-{part}" for file, parts in IN_PARTS.items() for part in parts}
    assert {name for name in todo if name.startswith("test_bench")} == files | in_parts
    assert todo["test_bench_waveglow-train"].command(100)[-5:] == [
        "bench/test_bench_waveglow.py",
        "-k",
        "train",
        "--time-limit=80",
        f"--peer-dle={Path('dle').resolve()}",
    ]


def test_kernels_are_compiled_before_the_benchmarks(tmp_path):
    todo = steps(tmp_path, None)
    names = [step.name for step in todo]
    benchmarks = [name for name in names if name.startswith("test_bench")]
    compiling = [step for step in todo if step.together == "compile"]
    assert {step.prepares for step in compiling} == {*benchmarks, "tune"}
    assert max(names.index(step.name) for step in compiling) < min(map(names.index, benchmarks))
    command = {step.prepares: step.command(100) for step in compiling}["test_bench_waveglow-train"]
    assert command[-4:] == [
        "bench/test_bench_waveglow.py",
        "--benchmark-disable",
        "-k",
        "train and (fastglow or compile)",
    ]
    assert not any(str(tmp_path) in word for word in command)  # a new machine compiles again


IN_PARTS = {"test_bench_waveglow": ("inference", "train"), "test_bench_train_step": ("waveglow", "tacotron2")}


def test_every_benchmark_of_a_file_in_parts_is_in_one():
    """pytest's -k sees the names of functions and parameters."""
    for file, parts in IN_PARTS.items():
        module = importlib.import_module(f"bench.{file}")
        for name, function in vars(module).items():
            for mark in getattr(function, "pytestmark", []) if name.startswith("test_") else []:
                for case in mark.args[1]:
                    assert sum(part in f"{name}[{case.id}]" for part in parts) == 1


def test_parts(tmp_path):
    by_part = {part: {step.name for step in steps(tmp_path, None, [part])} for part in PARTS}
    assert sum(map(len, by_part.values())) == len({step.name for step in steps(tmp_path, None)})
    pipeline = {"test_bench_synthesizer", "test_bench_decode_loop", "test_bench_waveglow-inference"}
    pipeline |= {"test_bench_accelerate", "test_bench_serve"}
    training = {"test_bench_teacher_forced_loop", "test_bench_waveglow-train", "test_bench_loader"}
    training |= {"test_bench_train_step-waveglow", "test_bench_train_step-tacotron2"}
    for part, names in (("pipeline", pipeline), ("training", training)):
        assert by_part[part] == names | {f"compile-{name}" for name in names}
    assert "tune" in by_part["kernels"]
    assert [step.part for step in steps(tmp_path, None)][:20] == ["tests"] * 20


def test_a_step_gets_time_to_start_and_none_starts_without(tmp_path, clock, capsys):
    todo = [Step("a", python(""), 1.0), Step("b", python(""), 99.0)]
    assert time_for(todo[:1], todo, 500) == SHORTEST
    assert time_for(todo[:1], todo, 100) == 50  # an equal part
    assert time_for(todo[:1], todo, 40) == LEAST
    assert run_all(todo, tmp_path, clock.now + 19) == {"a": 1, "b": 1}
    assert not list(tmp_path.iterdir())
    assert "a: no time left" in capsys.readouterr().out


def test_the_first_steps_leave_time_to_the_others(tmp_path, clock):
    limits = {}

    def step(name: str) -> Step:
        def command(limit):
            limits[name] = limit
            clock.now += limit  # takes all that it gets
            return [sys.executable, "-S", "-c", ""]

        return Step(name, command, 1.0)

    todo = [step(name) for name in "abcdefgh"]
    run_all(todo, tmp_path, clock.now + 4 * LEAST)
    assert limits == dict.fromkeys("abcd", LEAST)
    for name in "abcd":
        journal.append(tmp_path / "journal.jsonl", {"step": name, "code": name == "c", "seconds": 1.0})
    assert [step.name for step in gpu.unfinished(tmp_path, todo)] == [*"efgh", "c"]


@pytest.mark.parametrize("late, code, expected", [(0, 0, 0), (2, 0, 1), (2, 2, 2)])
def test_a_step_that_left_benchmarks_out_is_tried_again(late, code, expected):
    session = SimpleNamespace(config=SimpleNamespace(stash={conftest.DURING_THE_RUN: {"late": late}}), exitstatus=code)
    conftest.pytest_sessionfinish(session, code)
    assert session.exitstatus == expected


def test_times_follow_from_what_the_steps_take(monkeypatch):
    """A group takes as long as its longest member, or all of them on all workers."""
    monkeypatch.setattr(gpu, "WORKERS", 2)
    tests = [Step(str(i), python(""), seconds, together="tests") for i, seconds in enumerate([10.0] * 6)]
    alone = Step("alone", python(""), 90.0)
    assert [len(group) for group in gpu.groups([*tests, alone])] == [6, 1]
    assert time_for(tests, [*tests, alone], 1200) == 300
    long = Step("long", python(""), 60.0, together="tests")
    assert time_for([*tests[:1], long], [*tests[:1], long, alone], 1200) == 480


def test_expected_times_are_those_of_steps(tmp_path):
    known = json.loads(SECONDS_FILE.read_text())
    todo = {step.name: step.seconds for step in steps(tmp_path, None)}
    assert known.keys() <= todo.keys()
    assert {name: todo[name] for name in known} == known
    of_tests = [seconds for name, seconds in known.items() if name.startswith("tests-")]
    assert expected("tests-of-something-new") == statistics.median(of_tests)


def test_preparation_is_done_once_on_a_machine(tmp_path):
    cache = tmp_path / "cache" / "compiled.jsonl"
    todo = [
        Step("compile-a", python(""), 1.0, journal=cache, prepares="a"),
        Step("compile-b", python(""), 1.0, journal=cache, prepares="b"),
        Step("a", python(""), 1.0),
        Step("b", python("raise SystemExit(1)"), 1.0),
    ]
    run_all(todo, tmp_path, time.monotonic() + 900)
    assert [step.name for step in gpu.unfinished(tmp_path, todo)] == ["b"]
    cache.unlink()  # another machine
    assert [step.name for step in gpu.unfinished(tmp_path, todo)] == ["compile-b", "b"]


def test_the_files_of_a_run_and_what_a_second_one_repeats(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(environment, "has_gpu", lambda: True)
    monkeypatch.setattr(gpu, "identity", lambda: {"gpu": "NVIDIA H200"})
    good, bad = Step("good", python("print('good')"), 1.0), Step("bad", python("raise SystemExit(1)"), 1.0)
    nothing = Step("nothing", python("raise SystemExit(5)"), 1.0)
    monkeypatch.setattr(gpu, "steps", lambda out, peer, parts: [good, bad, nothing])
    monkeypatch.setattr(gpu, "report_of", lambda out: Step("report", python("raise SystemExit(2)"), 1.0))
    assert gpu.main(["--out", str(tmp_path)]) == 1
    codes = {record["step"]: record["code"] for record in journal.read(tmp_path / "journal.jsonl")}
    assert codes.pop("report") == 2
    assert codes == {"good": 0, "bad": 1, "nothing": 0}
    logs = {f"{name}.log" for name in ("good", "bad", "nothing", "report")}
    assert {path.name for path in tmp_path.iterdir()} == logs | {"journal.jsonl", "identity.json"}
    assert "failed: bad, report" in capsys.readouterr().out
    assert gpu.main(["--out", str(tmp_path), "--plan"]) == 0
    printed = capsys.readouterr().out
    given = {line.split()[1]: line.split()[-1] for line in printed.splitlines() if line.startswith("tests ")}
    assert given == {"good": "done", "nothing": "done", "bad": "s"}
    gpu.main(["--out", str(tmp_path)])
    assert capsys.readouterr().out.partition("bad:")[0].count("good") == 0


def test_a_run_goes_on_in_the_folder_of_the_same_machine_and_commit(tmp_path, monkeypatch):
    here = {"gpu": "NVIDIA H100 80GB HBM3", "commit": "1"}
    monkeypatch.setattr(gpu, "identity", lambda: here)
    for name, found in (("1", here), ("2", here), ("3", here | {"commit": "2"}), ("4", here | {"gpu": "NVIDIA H200"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "identity.json").write_text(json.dumps(found))
    (tmp_path / "5").mkdir()
    (tmp_path / "5" / "identity.json").write_text("")  # killed
    assert gpu.folder_for(tmp_path, fresh=False) == tmp_path / "2"
    assert not gpu.folder_for(tmp_path, fresh=True).exists()


def test_a_step_dies_with_a_killed_run(tmp_path):
    """Else it would measure beside the next run."""
    code = f"""
import sys, time
from pathlib import Path
from bench.gpu import run_all
from bench.steps import Step
step = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
run_all([Step("slow", lambda limit: [sys.executable, "-S", "-c", step], 1.0)], Path({str(tmp_path)!r}),
        time.monotonic() + 900)
"""
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=environment.ROOT)
    log = tmp_path / "slow.log"
    while not (log.exists() and log.read_text().endswith("\n")):
        assert runner.poll() is None
        time.sleep(0.02)
    status = Path("/proc", log.read_text().strip(), "stat")
    assert status.exists()
    runner.kill()
    runner.wait()
    while status.exists() and status.read_text().split()[2] != "Z":
        time.sleep(0.02)


def test_test_files_run_together_and_benchmarks_alone(tmp_path, monkeypatch):
    """The first two wait for each other, the last for both."""
    meet = """
import sys, time
from pathlib import Path
folder, mine, others = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
(folder / mine).touch()
while not (folder / others).exists():
    time.sleep(0.01)
"""

    monkeypatch.setattr(gpu, "WORKERS", 2)

    def meeting(mine: str, others: str) -> Step:
        command = [sys.executable, "-S", "-c", meet, str(tmp_path), mine, others]
        return Step(mine, lambda limit: command, 1.0, together="tests")

    alone = "import sys; from pathlib import Path; Path(sys.argv[1], 'alone').touch()"
    last = Step("last", lambda limit: [sys.executable, "-S", "-c", alone, str(tmp_path)], 1.0)
    todo = [meeting("a", "b"), meeting("b", "a"), last]
    assert run_all(todo, tmp_path, time.monotonic() + 900) == {"a": 0, "b": 0, "last": 0}
    ended = [record["step"] for record in journal.read(tmp_path / "journal.jsonl")]
    assert sorted(ended[:2]) == ["a", "b"] and ended[2] == "last"
    every = steps(tmp_path, None)
    assert {step.name for step in every if step.together == "tests"} == {
        step.name for step in every if step.part == "tests"
    }
    assert not any(step.together for step in every if step.name.startswith("test_bench"))


def test_steps_without_their_packages_are_left_out(monkeypatch, tmp_path, capsys):
    sings = [Step(name, python("print('la')"), 1.0, needs=("no_such_package",)) for name in ("sing", "hum")]
    monkeypatch.setattr(gpu, "steps", lambda out, peer, parts: [*sings, Step("speak", python(""), 1.0)])
    assert gpu.main(["--out", str(tmp_path), "--plan"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "gpu: no_such_package is not installed, so these are left out: sing, hum"
    assert [line.split()[1] for line in printed if line.startswith("tests ")] == ["speak"]


NOT_NEEDED = ("inflect", "matplotlib", "soundfile", "soxr", "unidecode")


def test_no_other_package_is_needed(tmp_path):
    """What a GPU machine may lack: all tests and benchmarks of `make gpu` are still collected."""
    (tmp_path / "missing.py").write_text(
        f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {NOT_NEEDED}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""
    )
    files = [word for step in steps(tmp_path, None) for word in step.command(100) if word.endswith(".py")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "missing", "--collect-only", "-q", *dict.fromkeys(files)],
        cwd=environment.ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu(capsys):
    assert gpu.main([]) == 2
    assert "no CUDA GPU" in capsys.readouterr().err
