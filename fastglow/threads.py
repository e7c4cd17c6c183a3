"""Lets PyTorch's CPU threads sleep, after microseconds of spinning, while they wait for each other.

A decoder runs thousands of small matrix products per second, each split over one thread per core. By default an idle
OpenMP thread spins for milliseconds in case more work arrives. If another process holds one of the cores, the spinning
threads keep the one that they wait for from running. Sleeping at once is no better: waking threads for every product
doubles a small decoder's time on an idle machine. So threads spin briefly, then sleep.

`let_threads_sleep` is called before the engine, the models, the training or the command load torch. It changes neither
the number of threads nor the user's settings.

Even so, waking a thread takes 50 us here, as long as many an operation of a decoder or of Griffin-Lim. `one_thread`
keeps such operations on the thread that calls them, and `Team` calls the others for the few that are worth it.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

# GNU's runtime reads the number of spins from the second variable: enough for the pause between two products of a
# decoder. Other runtimes read the first.
SLEEP_SETTINGS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "500"}
CHOICES = (*SLEEP_SETTINGS, "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Variables with which users choose how threads wait; if one is set, `let_threads_sleep` does nothing."""

PARKED = "fastglow: parked OpenMP threads"

_settled = False


def let_threads_sleep() -> None:
    """Loads torch and lets its waiting threads sleep, unless the user has chosen otherwise.

    The OpenMP runtime reads the environment when it is loaded, with torch. If it is not loaded yet, `SLEEP_SETTINGS` is
    set during the import only, so that child processes do not inherit it. If it is loaded already, `_park` has the same
    effect on GNU's runtime, which PyTorch's wheels carry; other runtimes stay unchanged.
    """
    global _settled
    if _settled or user_choices():
        return
    loaded = _loaded_libgomp()
    if loaded is not None:
        _settled = _park(loaded)
    elif "torch" not in sys.modules:
        before = {name: os.environ[name] for name in SLEEP_SETTINGS if name in os.environ}  # set, but empty
        os.environ.update(SLEEP_SETTINGS)
        try:
            import torch  # noqa: F401
        finally:
            for name in SLEEP_SETTINGS:
                del os.environ[name]
            os.environ.update(before)
        _settled = True


class Team:
    """The threads that PyTorch computes with, when called from this thread.

    The OpenMP runtime has a number for each of the caller's threads, other than torch.set_num_threads. Another runtime
    than GNU's is left alone: then all of this does nothing.
    """

    def __init__(self) -> None:
        import torch

        self._runtime = _runtime()
        # PyTorch gives a new thread its number when first asked for it.
        self.size = torch.get_num_threads() if self._runtime else 1

    def use(self, n: int) -> None:
        """Computes with n threads from here on."""
        if self._runtime and self.size > 1:
            self._runtime.omp_set_num_threads(n)


@contextmanager
def one_thread() -> Iterator[Team]:
    """Inside, PyTorch computes on the calling thread alone, but where the team is told otherwise."""
    team = Team()
    team.use(1)
    try:
        yield team
    finally:
        team.use(team.size)


def user_choices() -> dict[str, str]:
    """The variables of `CHOICES` that are set, with their values."""
    return {name: os.environ[name] for name in CHOICES if os.environ.get(name)}


@cache
def _runtime() -> ctypes.CDLL | None:
    """GNU's OpenMP runtime; None if PyTorch uses another."""
    import torch  # noqa: F401

    path = _loaded_libgomp()
    return ctypes.CDLL(path) if path else None


def _loaded_libgomp() -> str | None:
    """Path of GNU's OpenMP runtime, if this process has loaded it."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError:
        return None
    # The sixth column, which may contain spaces.
    paths = (line.split(maxsplit=5)[5] for line in lines if "libgomp" in line)
    return next((path for path in paths if Path(path).name.startswith("libgomp")), None)


def _park(libgomp: str) -> bool:
    """Shortens the runtime's spinning by parking more threads in it than there are cores; False if unnecessary.

    libgomp spins 3,000 times less if it has more threads than cores, since they cannot all run. The threads of a
    parallel region stay until the thread that opened it ends. So a thread opens an empty region, one thread wider
    than the cores, and sleeps for the life of the process.
    """
    import torch

    if torch.get_num_threads() == 1:  # a single thread never waits
        return False
    runtime = ctypes.CDLL(libgomp)
    nothing_to_do = ctypes.cast(runtime.omp_get_thread_num, ctypes.c_void_p)
    runtime.GOMP_parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    runtime.GOMP_parallel.restype = None
    ready = threading.Event()

    def park() -> None:
        runtime.GOMP_parallel(nothing_to_do, None, runtime.omp_get_num_procs() + 1, 0)
        ready.set()
        threading.Event().wait()

    threading.Thread(target=park, name=PARKED, daemon=True).start()
    ready.wait()
    return True
