"""Loads the engine for a command."""

import gc
import importlib

from fastglow.threads import let_threads_sleep


def load_engine() -> None:
    """Loads torch and the engine without garbage collections, and leaves them out of those to come.

    They are hundreds of thousands of objects that live as long as the process. Collections while they are loaded, and
    those at the exit of Python, would look at each of them and find nothing: a third of the time of a process that
    loads torch. Only for a process that is the command's own: a caller has objects that must be collected.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        let_threads_sleep()
        # First and from here, not from a dozen imports down: Python keeps frames in blocks of 16 KB, and maps a new one
        # for each call across a block's end. Triton makes tens of thousands of calls to read the kernels' sources.
        for name in ("fastglow.kernels", "fastglow.engine"):
            importlib.import_module(name)
        gc.freeze()
    finally:
        if collects:
            gc.enable()
