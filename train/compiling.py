"""torch.compile in training."""

import warnings
from contextlib import AbstractContextManager
from functools import cache

import torch

from fastglow.errors import FastglowError


@cache
def compile_problem(device: torch.device) -> str | None:
    """Why torch.compile does not work on a device, in one line; None if it does.

    On a CPU it needs a C++ compiler and Python's headers.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # Inductor's own types differ between versions
        return next(iter(str(error).splitlines()), type(error).__name__)
    return None


def check_compiler(device: torch.device) -> None:
    """
    Raises:
        FastglowError: torch.compile does not work on the device.
    """
    problem = compile_problem(device)
    if problem is not None:
        needs = "a C++ compiler and Python's headers" if device.type == "cpu" else "a C compiler and Python's headers"
        raise FastglowError(f"compile=True cannot compile ({problem}): install {needs}, or pass --no-compile")


def uncompiled() -> AbstractContextManager:
    """Inside, compiled functions run as they are written: what runs rarely is not worth compiling again."""
    return torch.compiler.set_stance("force_eager")
