"""Runs commands one at a time: at the lowest priority, under locks, and stopped together with this process."""

import ctypes
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fastglow.errors import FastglowError

PYTHON = (sys.executable, "-m")
FASTGLOW = (*PYTHON, "fastglow")
STOPPING = (signal.SIGINT, signal.SIGTERM)
LOWEST_PRIORITY = 19
POLL_SECONDS = 0.5
PR_SET_PDEATHSIG = 1


Command = list[str]


class Stopped(Exception):
    """A signal ended the run."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def shown(command: Sequence[str]) -> str:
    """A command as users type it."""
    words = list(command)
    for begin, typed in ((FASTGLOW, ["fastglow"]), (PYTHON, ["python", "-m"])):
        if tuple(words[: len(begin)]) == begin:
            words = typed + words[len(begin) :]
    return shlex.join(words)


def options_of(values: Mapping[str, Any]) -> list[str]:
    """Values by name as a command's options; a list repeats one, and false leaves a plain flag out."""
    words: list[str] = []
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        for entry in value if isinstance(value, list) else [value]:
            if entry is not False:
                words += [flag] if entry is True else [flag, str(entry)]
    return words


def say(line: str) -> None:
    print(f"voice: {line}", flush=True)


class Runner:
    """Within `with`, SIGINT and SIGTERM are passed on to the command that runs, and no other is started.

    A command gets SIGTERM if this process is killed. It holds the locks as long as it runs, so that what comes after
    waits until it has saved its work.
    """

    def __init__(self) -> None:
        self._stopped: int | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._locks: list[int] = []

    def __enter__(self) -> "Runner":
        self._before = {number: signal.signal(number, self._stop) for number in STOPPING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _: object) -> None:
        self._stopped = number
        if self._child is not None:
            self._child.send_signal(number)

    def check(self) -> None:
        """Raises Stopped after a signal."""
        if self._stopped is not None:
            raise Stopped(self._stopped)

    def call(self, command: Sequence[str], seconds: float | None = None) -> None:
        """Runs a command, which gets SIGTERM after so many seconds.

        Raises:
            Stopped: after a signal.
            FastglowError: it failed, or was killed.
        """
        self.check()
        say(shown(command))
        parent = os.getpid()
        self._child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=self._locks, preexec_fn=lambda: _in_the_child(parent)
        )
        try:
            if self._stopped is not None:  # before there was a child to pass it to
                self._child.send_signal(self._stopped)
            try:
                code = self._child.wait(seconds)
            except subprocess.TimeoutExpired:
                self._child.terminate()
                code = self._child.wait()
        finally:
            self._child = None
        self.check()
        if code < 0:
            raise FastglowError(f"{shown(command)} was killed by {signal.Signals(-code).name}")
        if code:
            raise FastglowError(f"{shown(command)} failed with exit code {code}")

    @contextmanager
    def locked(self, written: Path | None, read: Sequence[Path] = ()) -> Iterator[None]:
        """Waits until no other process writes these paths, or reads what is to be written (None: nothing is)."""
        with ExitStack() as stack:
            # In one order everywhere, so that no two wait for each other.
            for path in sorted({*read} | ({written} if written is not None else set())):
                stack.enter_context(self._lock(path, fcntl.LOCK_EX if path == written else fcntl.LOCK_SH))
            yield

    @contextmanager
    def _lock(self, path: Path, kind: int) -> Iterator[None]:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.parent / f".{path.name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            said = False
            while not _try_lock(lock, kind):
                if not said:
                    say(f"waiting for another run that uses {path}")
                said = True
                time.sleep(POLL_SECONDS)  # flock itself would go on waiting after a signal
                self.check()
            self._locks.append(lock)
            yield
        finally:
            if lock in self._locks:
                self._locks.remove(lock)
            os.close(lock)


def _try_lock(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _in_the_child(parent: int) -> None:
    os.setpriority(os.PRIO_PROCESS, 0, LOWEST_PRIORITY)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it was killed before
        os._exit(1)
