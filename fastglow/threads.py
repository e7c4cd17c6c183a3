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
    if "torch" not in sys.modules:
        loaded = _loaded_libgomps()  # another package's own copy, or the one that PyTorch will use, too
        before = {name: os.environ[name] for name in SLEEP_SETTINGS if name in os.environ}  # set, but empty
        os.environ.update(SLEEP_SETTINGS)
        try:
            import torch  # noqa: F401
        finally:
            for name in SLEEP_SETTINGS:
                del os.environ[name]
            os.environ.update(before)
        _settled = not loaded or _loaded_libgomps() != loaded
    if not _settled:
        _settled = _park()


class Team:
    """The threads that PyTorch computes with, MKL's included, when called from this thread.

    OpenMP and MKL have numbers for each of the caller's threads, other than torch.set_num_threads. A PyTorch that
    computes without OpenMP is left alone: then all of this does nothing.
    """

    def __init__(self) -> None:
        import torch

        self._libraries = _libraries()
        # PyTorch gives a new thread its number when first asked for it.
        self.size = torch.get_num_threads() if self._libraries else 1

    def use(self, n: int) -> None:
        """Computes with n threads from here on."""
        self._set(n, n)

    def _set(self, n: int, n_of_mkl: int) -> int:
        """Returns MKL's number before: 0 if it follows OpenMP's, which it does until torch.set_num_threads."""
        if self._libraries is None:
            return 0
        self._libraries.omp_set_num_threads(n)
        return self._libraries.MKL_Set_Num_Threads_Local(n_of_mkl) if _has_mkl() else 0


@contextmanager
def one_thread() -> Iterator[Team]:
    """Inside, PyTorch computes on the calling thread alone, but where the team is told otherwise."""
    team = Team()
    n_of_mkl = team._set(1, 1)
    try:
        yield team
    finally:
        team._set(team.size, n_of_mkl)


def user_choices() -> dict[str, str]:
    """The variables of `CHOICES` that are set, with their values."""
    return {name: os.environ[name] for name in CHOICES if os.environ.get(name)}


@cache
def _libraries() -> ctypes.CDLL | None:
    """Finds functions of the libraries that PyTorch is linked to; None if their OpenMP is not what it computes with."""
    import torch

    try:
        libraries = ctypes.CDLL(torch._C.__file__)
        set_threads = libraries.omp_set_num_threads
    except (AttributeError, OSError):
        return None
    n = torch.get_num_threads()
    other = 1 if n > 1 else 2
    set_threads(other)
    found = torch.get_num_threads() == other  # a runtime that was preloaded comes first
    set_threads(n)
    return libraries if found else None


@cache
def _has_mkl() -> bool:
    return hasattr(_libraries(), "MKL_Set_Num_Threads_Local")


def _loaded_libgomps() -> set[str]:
    """Paths of GNU's OpenMP runtimes that this process has loaded: packages bring their own."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError:
        return set()
    # The sixth column, which may contain spaces.
    paths = (line.split(maxsplit=5)[5] for line in lines if "libgomp" in line)
    return {path for path in paths if Path(path).name.startswith("libgomp")}


def _park() -> bool:
    """Shortens the runtime's spinning by parking more threads in it than there are cores; False if it did not.

    libgomp spins 3,000 times less if it has more threads than cores, since they cannot all run. The threads of a
    parallel region stay until the thread that opened it ends. So a thread opens an empty region, one thread wider
    than the cores, and sleeps for the life of the process.
    """
    import torch

    runtime = _libraries()
    gnu = hasattr(runtime, "GOMP_parallel") and not hasattr(runtime, "kmp_set_blocktime")  # others imitate it
    if runtime is None or not gnu or torch.get_num_threads() == 1:  # a single thread never waits
        return False
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
