"""Faulty checks, which the doctor's child process imports by name; it loads no torch for them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from fastglow.diagnosis.findings import Check, Finding
from fastglow.errors import FastglowError


def fine(name: str = "fine") -> list[Finding]:
    return [Finding(name, "ok", f"process {os.getpid()}")]


def nothing() -> list[Finding]:
    return []


def prints() -> list[Finding]:
    print("to standard output")
    os.write(1, b"to descriptor 1\n")
    os.write(2, b"to descriptor 2\n")
    return fine("prints")


def raises(message: str) -> list[Finding]:
    raise RuntimeError(message)


def refuses() -> list[Finding]:
    raise FastglowError("x=3 must be 4: pass 4")


def exits() -> list[Finding]:
    sys.exit("leaving")


def ends(code: int, last_words: str = "") -> list[Finding]:
    os.write(2, last_words.encode())
    os._exit(code)


def dies(number: int) -> list[Finding]:
    os.kill(os.getpid(), number)
    time.sleep(60)
    return []


def hangs() -> list[Finding]:
    time.sleep(600)
    return []


def hangs_with_a_child(pid_file: str) -> list[Finding]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(pid_file).write_text(str(child.pid))
    return hangs()


def loses_the_gpu() -> list[Finding]:
    def synchronize() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    cuda = SimpleNamespace(is_initialized=lambda: True, synchronize=synchronize)
    sys.modules["torch"] = SimpleNamespace(cuda=cuda)  # type: ignore[assignment]
    return fine("loses the GPU")


def check(function: Callable[..., list[Finding]], *arguments: object, seconds: float = 60.0) -> Check:
    return Check("planted", function.__name__, function, arguments, seconds, remedy="pull it out")
