"""How PyTorch's threads wait for each other on a CPU: asleep, after microseconds of spinning.

A decoder asks for thousands of small products a second, and PyTorch shares each of them out among one thread a
core. Its OpenMP runtime lets a thread that is done spin for milliseconds, in case there is more to do. Where another
process has one of the cores, the thread that is waited for cannot run while the others spin. Threads that sleep at
once must be woken for the next product, which on an idle machine doubles a small decoder's time: so they spin shortly.

`wait_asleep` is called before the engine, the models, the training or the command load torch. How many threads
there are is left alone, and what the user has chosen is kept. With kernels/backend.py this is the only file of the
library that looks at the environment.
"""

import ctypes
import os
import sys
import threading
from pathlib import Path

# Rounds of spinning: enough for the pause between two products of a decoder. GNU's runtime takes them from the
# second variable, others go by the first.
ASLEEP = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "500"}
CHOICES = (*ASLEEP, "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Variables by which a user says how threads wait: where one is set, nothing is done here."""

PARKED = "fastglow: parked OpenMP threads"

_settled = False


def wait_asleep() -> None:
    """Loads torch, and has its threads sleep when they wait, unless the user has chosen how they wait.

    The runtime looks at the environment when it is loaded, with torch: if it is not loaded yet, `ASLEEP` is set for
    just so long, and processes started later do not inherit it. If it is loaded already, it is told by `_park`, which
    needs GNU's runtime, the one in PyTorch's wheels; others are left as they are.
    """
    global _settled
    if _settled or any(os.environ.get(name) for name in CHOICES):
        return
    loaded = _loaded_libgomp()
    if loaded is not None:
        _settled = _park(loaded)
    elif "torch" not in sys.modules:
        before = {name: os.environ[name] for name in ASLEEP if name in os.environ}  # empty ones, which choose nothing
        os.environ.update(ASLEEP)
        try:
            import torch  # noqa: F401
        finally:
            for name in ASLEEP:
                del os.environ[name]
            os.environ.update(before)
        _settled = True


def _loaded_libgomp() -> str | None:
    """Path of GNU's OpenMP runtime, if this process has one."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError:
        return None
    # The sixth column, which may hold blanks.
    paths = (line.split(maxsplit=5)[5] for line in lines if "libgomp" in line)
    return next((path for path in paths if Path(path).name.startswith("libgomp")), None)


def _park(libgomp: str) -> bool:
    """Makes the runtime spin no more, by parking a thread more than there are cores in it; whether it was needed.

    libgomp lets threads spin 3,000 times less where there are more of them than cores, as then they cannot all run.
    The threads that a parallel region took stay until the thread that opened it ends: one opens an empty region,
    and sleeps with them for as long as the process lives.
    """
    import torch

    if torch.get_num_threads() == 1:  # alone, a thread waits for no one
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
