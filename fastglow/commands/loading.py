"""Loads the engine for a command."""

import gc


def load_engine() -> None:
    """Loads torch and the engine without garbage collections, and leaves them out of those to come.

    They are hundreds of thousands of objects that live as long as the process. Collections while they are loaded, and
    those at the exit of Python, would look at each of them and find nothing: a third of the time of a process that
    loads torch. Only for a process that is the command's own: a caller has objects that must be collected.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        import fastglow.engine  # noqa: F401

        gc.freeze()
    finally:
        if collects:
            gc.enable()
