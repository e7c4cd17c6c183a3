"""Runs checks in a child process: one that raises, hangs or ends its process spoils no other.

The child sends the findings of each check as they come. If it ends or hangs, the check that it was running has failed,
and another child runs the rest.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from .findings import Check, Finding

START_SECONDS = 30.0
"""Added to the time of a child's first check."""

_PROGRAM = "import sys; sys.path[:] = {path!r}; from fastglow.diagnosis.isolation import work; work({descriptor})"


def run(checks: Sequence[Check]) -> Generator[tuple[Check, list[Finding]], None, None]:
    """Yields each check with its findings, in order."""
    waiting = list(checks)
    while waiting:
        with closing(_Child(waiting)) as child:
            while waiting and child.alive:
                found = child.findings(waiting[0])
                if found is not None:
                    yield waiting.pop(0), found


class _Child:
    """A process that runs checks, the leader of its own session."""

    def __init__(self, checks: Sequence[Check]) -> None:
        self.alive = True
        self._n_done = 0
        # A file in memory: the temporary folder may be what is broken.
        self._log = os.memfd_create("fastglow-doctor")
        self._connection, childs = Pipe()
        program = _PROGRAM.format(path=sys.path, descriptor=childs.fileno())
        with childs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
                pass_fds=[childs.fileno()], start_new_session=True,
            )  # fmt: skip
        with suppress(BrokenPipeError):  # if the process has ended already, its first check fails
            self._connection.send_bytes(pickle.dumps(list(checks)))

    def findings(self, check: Check) -> list[Finding] | None:
        """Of the next check; None: the process has ended before it, and wants another to run it."""
        seconds = check.seconds + (0.0 if self._n_done else START_SECONDS)
        try:
            if self._connection.poll(seconds):
                found = pickle.loads(self._connection.recv_bytes())
                self._n_done += 1
                return found
            how = f"did not end within {seconds:g} seconds"
        except (EOFError, ConnectionResetError):
            code = self._process.wait()
            if code == 0 and self._n_done:
                self.alive = False
                return None
            how = f"{_how_it_ended(code)}{self._last_words()}"
        self.alive = False
        return [check.failed(f"its process {how}")]

    def close(self) -> None:
        """Ends the process, and what it started, if they still run."""
        self._connection.close()
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._log)

    def _last_words(self) -> str:
        size = os.fstat(self._log).st_size
        lines = os.pread(self._log, 2000, max(0, size - 2000)).decode(errors="replace").split("\n")
        last = [line.strip() for line in lines if line.strip()][-1:]
        return f": {last[0]}" if last else ""


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def work(descriptor: int) -> None:
    """The child's program."""
    with Connection(descriptor) as connection:
        for check in pickle.loads(connection.recv_bytes()):
            try:
                findings = check.function(*check.arguments)
            except BaseException as error:  # whatever it is, it is what the check has found
                findings = [check.failed(_message(error))]
            connection.send_bytes(pickle.dumps(findings))
            if _gpu_is_lost():
                return


def _message(error: BaseException) -> str:
    from fastglow.errors import FastglowError

    return str(error) if isinstance(error, FastglowError) else f"{type(error).__name__}: {error}"


def _gpu_is_lost() -> bool:
    """Whether an error on the GPU makes all later calls of this process fail."""
    torch = sys.modules.get("torch")
    try:
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except Exception:  # torch itself may be broken
        return True
    return False
