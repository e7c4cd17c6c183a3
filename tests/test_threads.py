"""How PyTorch's threads wait, tested in separate processes, since the runtime is configured once, when it is loaded."""

import json
import os
import re
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
import sys
from fastglow.cli import main
sys.argv[1:] = ["synth", "Hi.", "-o", "/dev/null/x.wav"]
assert main() == 2
"""
CALLED_COMMAND = """
from fastglow.cli import main
assert main(["synth", "Hi.", "-o", "-", "--voice", "/dev/null"]) == 2
"""


@pytest.mark.parametrize(
    "code",
    [
        "import fastglow; fastglow.Synthesizer",
        "import fastglow.models",
        "import fastglow.train",
        COMMAND,
        CALLED_COMMAND,
    ],
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
import re, threading
import torch
from fastglow.threads import one_thread
def numbers():
    n = torch.get_num_threads()
    return n, re.findall(r"(?:omp|mkl)_get_max_threads[(][)] : ([0-9]+)", torch.__config__.parallel_info())
def ask_another_thread():
    other = threading.Thread(target=lambda: others.append(numbers()))
    other.start()
    other.join()
found, others = [numbers()], []
ask_another_thread()
try:
    with one_thread() as team:
        found.append(numbers())
        ask_another_thread()
        team.use(team.size)
        found.append(numbers())
        raise KeyError
except KeyError:
    found.append(numbers())
assert others[0] == others[1], others
n, each = found[0]
assert each and set(each) == {str(n)}, found[0]
assert found == [found[0], (1, ["1"] * len(each)), found[0], found[0]], found
torch.set_num_threads(3)
assert numbers() == (3, ["3"] * len(each)), numbers()
"""


@pytest.mark.parametrize("chosen", ["1", "2"])
@pytest.mark.parametrize("way", ["", "import torch; torch.set_num_threads(2)"])
def test_one_thread_is_the_callers_alone_and_for_a_while(chosen, way):
    run(way + ALONE, OMP_NUM_THREADS=chosen)


@pytest.fixture(scope="module")
def foreign_libgomp(tmp_path_factory):
    """A copy of PyTorch's runtime as another package brings it: the loader takes it for another library."""
    code = "import torch; from fastglow.threads import _loaded_libgomps; print(*_loaded_libgomps(), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    (own,) = done.stdout.split("\n")[:-1]
    path = tmp_path_factory.mktemp("another package") / "libgomp-1234.so.1"
    renamed, n = re.subn(rb"(libgomp[-.\w]*)1\0", rb"\g<1>9\0", Path(own).read_bytes())
    assert n
    path.write_bytes(renamed)
    return own, str(path)


@pytest.mark.parametrize("when", ["before torch", "after torch"])
def test_another_packages_runtime_is_left_alone(foreign_libgomp, when):
    own, foreign = foreign_libgomp
    lines = ["import ctypes", f"foreign = ctypes.CDLL({foreign!r})", "import fastglow.engine"]
    if when == "after torch":
        lines.insert(1, "import torch")
    lines += ["from fastglow.threads import _loaded_libgomps", f"assert _loaded_libgomps() == {{{own!r}, {foreign!r}}}"]
    lines += ["n = foreign.omp_get_max_threads()", ALONE, "assert foreign.omp_get_max_threads() == n"]
    report, settings = run("\n".join(lines), OMP_NUM_THREADS="2")
    assert report["parked"] == (when == "after torch")
    if when == "before torch":  # PyTorch's own is the last to be loaded
        assert settings["OMP_WAIT_POLICY"] == "PASSIVE"


def test_a_runtime_that_another_package_has_loaded_has_more_threads_than_cores(foreign_libgomp):
    own, _ = foreign_libgomp
    report, _ = run(f"import ctypes; ctypes.CDLL({own!r}); import fastglow.engine", OMP_NUM_THREADS="2")
    assert report["parked"] == 1


@pytest.mark.parametrize("linked", ["to no OpenMP", "to one that it does not use", "to nothing that can be loaded"])
def test_without_openmp_threads_stay_as_they_are(foreign_libgomp, linked):
    library = {
        "to no OpenMP": "__import__('_ctypes').__file__",
        "to one that it does not use": repr(foreign_libgomp[1]),
    }
    code = f"""
import torch
torch._C.__file__ = {library.get(linked, repr("/dev/null"))}
import fastglow.engine
from fastglow.threads import one_thread
with one_thread() as team:
    assert (team.size, torch.get_num_threads()) == (1, 2)
    team.use(3)
    assert torch.get_num_threads() == 2
"""
    report, _ = run(code, OMP_NUM_THREADS="2")
    assert (report["threads"], report["parked"]) == (2, 0)
