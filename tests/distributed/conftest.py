"""Runs in several processes on a CPU, connected by gloo, as torchrun starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..train.conftest import (
    ENVIRONMENT,
    prepared,  # noqa: F401
)

ROOT = Path(__file__).parents[2]


def run_in_two_processes(module, prepared, out):  # noqa: F811
    """Runs a module of this folder under torchrun, with the paths of the data and of its results."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *command, "-m", f"tests.distributed.{module}", str(prepared), str(out)],
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# Imported by every Python process that finds it: plants the fault that FASTGLOW_TEST_FAULT names into a rank.
FAULTS = """
import os

fault, _, where = os.environ.get("FASTGLOW_TEST_FAULT", "").partition(" ")
process = [os.environ.get(name) for name in ("RANK", "TORCHELASTIC_RESTART_COUNT")]
if fault.startswith("starting") and where.split()[:2] == process:
    import signal, time

    os.kill(os.getppid(), getattr(signal, fault.partition("-")[2]))
    time.sleep(600)  # it is killed
elif fault.startswith("spawning"):
    import signal, subprocess, time

    class Popen(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            if (options.get("env") or {}).get("RANK") == where.split()[0]:
                os.kill(os.getpid(), getattr(signal, fault.partition("-")[2]))

    subprocess.Popen = Popen
    if "RANK" in os.environ:
        time.sleep(600)  # it is killed
elif fault == "orphaned":
    import signal

    if where.split()[:2] == process:
        os.kill(os.getppid(), signal.SIGKILL)
elif "RANK" in os.environ and fault:
    import signal
    import time
    from fastglow.errors import FastglowError
    from fastglow.train.step import TrainStep

    rank, attempt, iteration = where.split()
    planted = rank == os.environ["RANK"] and attempt == os.environ["TORCHELASTIC_RESTART_COUNT"]
    step = TrainStep.__call__

    if planted and fault == "finalization":
        import atexit

        atexit.register(os.abort)

    def faulty(self, *args, **options):
        if planted and self.state.iteration == int(iteration):
            if fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            elif fault == "error":
                raise FastglowError("this rank is out of order: mend it")
            elif fault == "crash":
                raise ZeroDivisionError("not foreseen")
            elif fault == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            else:  # to the command; this process waits until it has passed it on
                number, came = getattr(signal, fault), []
                before = signal.getsignal(number) if number in (signal.SIGINT, signal.SIGTERM) else None
                if before is not None:
                    signal.signal(number, lambda *args: (before(*args), came.append(args)))
                os.kill(os.getppid(), number)
                while before is not None and not came:
                    time.sleep(0.01)
        return step(self, *args, **options)

    TrainStep.__call__ = faulty
"""


@pytest.fixture(scope="session")
def faults(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    (folder / "sitecustomize.py").write_text(FAULTS)
    return folder


@pytest.fixture(scope="session")
def environment(faults):
    """`environment(fault)`: of a process whose children may find a fault."""

    def of(fault=""):
        paths = os.pathsep.join([str(ROOT), *([str(faults)] if fault else [])])
        return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "FASTGLOW_TEST_FAULT": fault}

    return of


@pytest.fixture(scope="session")
def fastglow(environment):
    """`fastglow(arguments, fault)` runs the command; `fault` is what, rank, attempt and iteration."""

    def run(arguments, fault=""):
        return subprocess.run(
            [sys.executable, "-m", "fastglow", *map(str, arguments)],
            env=environment(fault),
            capture_output=True,
            text=True,
        )

    return run
