"""How PyTorch's threads wait, tested in separate processes, since the runtime is configured once, when it is loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastglow.threads import CHOICES

ROOT = Path(__file__).parents[1]
CHOSEN = (*CHOICES, "OMP_NUM_THREADS", "MKL_NUM_THREADS")

REPORT = """
import json, os, sys, threading
import torch
a = torch.ones(300, 300)
assert (a @ a == 300).all()
print(json.dumps({
    "threads": torch.get_num_threads(),
    "parked": sum(thread.name.startswith("fastglow") for thread in threading.enumerate()),
    "tasks": len(os.listdir("/proc/self/task")),
    "cores": len(os.sched_getaffinity(0)),
    "left": {name: value for name, value in os.environ.items() if name.startswith(("OMP_", "GOMP_", "KMP_", "MKL_"))},
}))
"""


def run(code, **environment):
    """(output of REPORT, settings that the OpenMP runtime displays when it is loaded)."""
    inherited = {name: value for name, value in os.environ.items() if name not in CHOSEN}
    done = subprocess.run(
        [sys.executable, "-c", code + REPORT],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**inherited, "OMP_DISPLAY_ENV": "verbose", **environment},
    )
    assert done.returncode == 0, done.stderr
    lines = (line.strip().removeprefix("[host] ") for line in done.stderr.splitlines())
    settings = dict(line.replace("'", "").split(" = ", 1) for line in lines if " = " in line)
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["left"] == {"OMP_DISPLAY_ENV": "verbose", **environment}, "processes started later would inherit it"
    return report, settings


# As a data loader does.
FORK = """
import torch, fastglow.engine, multiprocessing
torch.ones(500, 500) @ torch.ones(500, 500)
def work(queue):
    torch.set_num_threads(1)
    queue.put(float((torch.ones(99, 99) @ torch.ones(99, 99)).sum()))
context = multiprocessing.get_context("fork")
queue = context.SimpleQueue()
worker = context.Process(target=work, args=(queue,))
worker.start()
assert queue.get() == 99.0**3
worker.join()
assert worker.exitcode == 0
"""

COMMAND = """
from fastglow.cli import main
assert main(["synth", "Hi.", "-o", "/dev/null/x.wav"]) == 2
"""


@pytest.mark.parametrize(
    "code", ["import fastglow; fastglow.Synthesizer", "import fastglow.models", "import fastglow.train", COMMAND]
)
def test_the_runtime_is_loaded_with_threads_that_sleep(code):
    report, settings = run(code)
    assert (settings["OMP_WAIT_POLICY"], settings["GOMP_SPINCOUNT"]) == ("PASSIVE", "500")
    assert report["parked"] == 0


@pytest.mark.parametrize(
    "code",
    [
        "import torch, fastglow.engine",
        "import fastglow; fastglow.load_checkpoint; import fastglow.models, fastglow.train",
        FORK,
    ],
)
def test_a_runtime_that_is_loaded_already_has_more_threads_than_cores(code):
    report, settings = run(code, OMP_NUM_THREADS="2")
    assert int(settings["GOMP_SPINCOUNT"]) > 0
    assert report["threads"] == 2
    assert report["parked"] == 1
    assert report["tasks"] > 1 + report["cores"] + 1  # the main thread and the parked ones


@pytest.mark.parametrize(
    "code, name, value, policy, spins",
    [
        ("import fastglow.engine", "OMP_WAIT_POLICY", "active", "ACTIVE", "30000000000"),
        ("import fastglow.engine", "GOMP_SPINCOUNT", "12345", "PASSIVE", "12345"),
        ("import fastglow.train", "KMP_BLOCKTIME", "7", "PASSIVE", "300000"),
        ("import torch, fastglow.engine", "OMP_WAIT_POLICY", "active", "ACTIVE", "30000000000"),
    ],
)
def test_how_threads_wait_is_the_users_choice(code, name, value, policy, spins):
    report, settings = run(code, **{name: value})
    assert (settings["OMP_WAIT_POLICY"], settings["GOMP_SPINCOUNT"]) == (policy, spins)
    assert report["parked"] == 0


@pytest.mark.parametrize(
    "code, environment, n",
    [
        ("import fastglow.engine", {"OMP_NUM_THREADS": "1"}, 1),
        ("import torch, fastglow.engine", {"OMP_NUM_THREADS": "2"}, 2),
        ("import fastglow.engine", {"MKL_NUM_THREADS": "1"}, 1),
        ("import torch; torch.set_num_threads(3); import fastglow.engine", {}, 3),
        ("import torch; torch.set_num_threads(1); import fastglow.engine", {}, 1),
    ],
)
def test_how_many_threads_there_are_is_the_users_choice(code, environment, n):
    report, _ = run(code, **environment)
    assert report["threads"] == n
    assert report["parked"] == ("torch" in code and n > 1)


ALONE = """
import threading
import torch
from fastglow.threads import one_thread
found, others = [torch.get_num_threads()], []
try:
    with one_thread() as team:
        found.append(torch.get_num_threads())
        other = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
        other.start()
        other.join()
        team.use(team.size)
        found.append(torch.get_num_threads())
        raise KeyError
except KeyError:
    found.append(torch.get_num_threads())
assert others == [found[0]], others
assert found == [found[0], 1, found[0], found[0]], found
"""


@pytest.mark.parametrize("chosen", ["1", "2"])
@pytest.mark.parametrize("way", ["", "import torch; torch.set_num_threads(2)"])
def test_one_thread_is_the_callers_alone_and_for_a_while(chosen, way):
    report, _ = run(way + ALONE, OMP_NUM_THREADS=chosen)
    assert report["threads"] == (2 if way else int(chosen))
