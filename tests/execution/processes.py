"""Runs the programs of a launch at the same time, each share of them in a forked process of its own.

The tensors that programs write must be in `shared_memory`. Atomic operations are the interpreter's own, between
processes. `Schedule` disturbs when programs run, and can stop one.
"""

import inspect
import mmap
import os
import pickle
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

from .programs import Grid, Observer, Program, run_programs
from .races import Launch, Recorder

Share = Callable[[str, Grid], Sequence[Sequence[Program]]]
"""(kernel's name, grid) -> the programs of each process, in order."""


def one_program_each(kernel: str, grid: Grid) -> list[list[Program]]:
    assert grid[1:] == (1, 1)
    return [[(i, 0, 0)] for i in range(grid[0])]


def shared_empty(*shape: int, dtype: torch.dtype, device: Any = "cpu") -> Tensor:
    """`torch.empty` in memory that forked processes share; floating-point values are NaN."""
    sizes = torch.Size(shape[0] if shape and not isinstance(shape[0], int) else shape)
    whole = mmap.mmap(-1, max(1, sizes.numel()) * dtype.itemsize)
    x = torch.frombuffer(whole, dtype=dtype)[: sizes.numel()].view(sizes)
    return x.fill_(float("nan")) if dtype.is_floating_point else x


@contextmanager
def shared_memory() -> Iterator[None]:
    """Inside, `torch.empty` allocates shared memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", shared_empty)
        yield


class Stop(NamedTuple):
    """Where a program stops: at its nth (from 0) event of a kind."""

    program: int
    event: str  # 'start', 'load', 'store', 'arrival' (before an atomic operation), 'arrived' (after it)
    n: int = 0
    resumes: bool = False  # after the other programs have ended; else it is killed

    def __str__(self) -> str:
        return f"program {self.program} {'suspended' if self.resumes else 'killed'} at {self.event} {self.n}"


RUNS, ENDED, STOPPED, LATE = -1, -2, -3, -4


class Schedule(Observer):
    """When a process's programs run: seeded sleeps; polls only when the counter has changed, or never will.

    An atomic operation directly after another is a poll. Before a poll, a program sleeps until the counter has a value
    that it has not seen, or until no other program can run on: all have ended, have stopped, or wait for the same
    value. So a launch whose programs all arrive needs at most one poll per arrival, whatever the load of the machine,
    and one that cannot go on ends after `max_polls`.

    Before some of its arrivals (drawn from the seed) one program waits until none of the others can run on.
    """

    def __init__(self, i: int, states: np.ndarray, seed: int, stop: Stop | None) -> None:
        self._i, self._states, self._stop = i, states, stop
        self._random = random.Random(f"{seed} {i}")
        self._late = random.Random(seed)
        self._parent = os.getppid()
        self._value: int | None = None  # of the counter, after the last atomic operation if nothing came since
        self._counts = dict.fromkeys(("start", "load", "store", "arrival", "arrived"), 0)

    def started(self, program: Program) -> None:
        self._states[self._i] = RUNS
        self._count("start")

    def loaded(self, addresses: np.ndarray, itemsize: int) -> None:
        self._other("load")

    def stored(self, addresses: np.ndarray, itemsize: int) -> None:
        self._other("store")

    def synchronized(self) -> None:
        self._value = None

    def exchanged(self, addresses: np.ndarray, itemsize: int, sem: str) -> None:
        counter = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_int32 * 1).from_address(int(addresses.flat[0])))
        if self._value is None:
            self._sleep(0.5, 2e-3)
            self._count("arrival")
            if self._late.randrange(len(self._states)) == self._i:
                self._states[self._i] = LATE
                self._wait(lambda: self._only_this_one(counter, LATE))
        else:
            self._states[self._i] = self._value
            self._wait(lambda: counter[0] != self._value or self._only_this_one(counter))
        self._states[self._i] = RUNS

    def returned(self, op: str, before: np.ndarray, operands: np.ndarray, scope: str) -> None:
        is_arrival = self._value is None
        self._value = int(before.flat[0] + operands.flat[0])
        if is_arrival:
            self._count("arrived")
            self._sleep(0.5, 1e-3)

    def _other(self, event: str) -> None:
        self._value = None
        self._count(event)
        self._sleep(0.02, 1e-3)

    def _only_this_one(self, counter: np.ndarray, *states: int) -> bool:
        value = int(counter[0])
        others = np.delete(self._states, self._i)
        return bool(np.isin(others, (ENDED, STOPPED, *states, value)).all()) and int(counter[0]) == value

    def _wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            time.sleep(2e-4)
            if os.getppid() != self._parent:
                os._exit(1)

    def _sleep(self, probability: float, most: float) -> None:
        if self._random.random() < probability:
            time.sleep(self._random.random() * most)

    def _count(self, event: str) -> None:
        n, self._counts[event] = self._counts[event], self._counts[event] + 1
        stop = self._stop
        if stop is not None and (stop.program, stop.event, stop.n) == (self._i, event, n):
            self._states[self._i] = STOPPED
            os.kill(os.getpid(), signal.SIGSTOP if stop.resumes else signal.SIGKILL)
            self._states[self._i] = RUNS


class Concurrent(NamedTuple):
    """A launch that ran in processes; programs that were killed are not in `launch`."""

    launch: Launch
    names: dict[str, tuple[int, int]]  # byte ranges of the arguments' tensors


@contextmanager
def run_concurrently(share: Share, seed: int = 0, stop: Stop | None = None) -> Iterator[list[Concurrent]]:
    """Inside, the programs of each launch run in processes. Yields a list of the launches."""
    launches: list[Concurrent] = []

    def call(executor: Any, *args: Any, **kwargs: Any) -> None:
        kernel = executor.fn.__name__
        grid = tuple(executor.grid) + (1,) * (3 - len(executor.grid))
        shares = share(kernel, grid)
        states = np.frombuffer(mmap.mmap(-1, 4 * len(shares)), np.int32)
        states[:] = RUNS

        def run(i: int) -> dict[Program, list]:
            # The interpreter copies arguments back to where they already are. That must not touch shared memory.
            interpreter.GridExecutor._restore_args_dev = lambda *_: None
            recorder = Recorder()
            try:
                with run_programs(lambda *_: shares[i], recorder, Schedule(i, states, seed + len(launches), stop)):
                    executor(*args, **kwargs)
            finally:
                states[i] = ENDED  # also after an error, or the others would wait
            return recorder.launches[0].programs

        programs = {}
        for recorded in fork_each(run, len(shares), stop):
            programs |= recorded or {}
        arguments = inspect.getcallargs(executor.fn, *args, **{k: v for k, v in kwargs.items() if k.isupper()})
        launches.append(Concurrent(Launch(kernel, grid, programs), dict(_tensors("", arguments))))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.GridExecutor, "__call__", call)
        yield launches


def _tensors(path: str, value: Any) -> Iterator[tuple[str, tuple[int, int]]]:
    if isinstance(value, Tensor):
        yield path, (value.data_ptr(), value.data_ptr() + value.nbytes)
    elif isinstance(value, dict) or hasattr(value, "_fields"):
        fields = value if isinstance(value, dict) else value._asdict()
        for name, field in fields.items():
            yield from _tensors(f"{path}.{name}" if path else name, field)


def fork_each(run: Callable[[int], Any], n: int, stop: Stop | None = None) -> list[Any]:
    """What `run(0)`, ..., `run(n - 1)` return, each in a process of its own; None for the one that `stop` kills."""
    files = [tempfile.TemporaryFile() for _ in range(n)]
    pids: dict[int, int] = {}
    try:
        for i in range(n):
            pids[i] = _fork(run, i, files[i])
        last = [stop.program] if stop is not None and stop.program < n else []
        for i in [*(i for i in range(n) if i not in last), *last]:
            if i in last and stop is not None and stop.resumes:
                _, status = os.waitpid(pids[i], os.WUNTRACED)
                assert os.WIFSTOPPED(status), f"{stop}: it was not suspended"
                os.kill(pids[i], signal.SIGCONT)
            _, status = os.waitpid(pids.pop(i), 0)
            expected = -signal.SIGKILL if i in last and stop is not None and not stop.resumes else 0
            code = os.waitstatus_to_exitcode(status)
            if code != expected:
                files[i].seek(0)
                raise AssertionError(f"process {i} ended with {code}: {files[i].read().decode(errors='replace')}")
        results = []
        for file in files:
            file.seek(0)
            content = file.read()
            results.append(pickle.loads(content) if content else None)
        return results
    finally:
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for file in files:
            file.close()


def _fork(run: Callable[[int], Any], i: int, file: Any) -> int:
    with warnings.catch_warnings():
        # Python 3.12 warns of threads in the parent. Those of BLAS are idle, and BLAS starts its own again.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        file.write(pickle.dumps(run(i)))
        code = 0
    except BaseException:
        file.write(traceback.format_exc().encode())
    finally:
        file.flush()
        sys.stderr.flush()
        os._exit(code)
