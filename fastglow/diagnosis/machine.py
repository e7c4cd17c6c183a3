"""Checks of the machine: system, processor, memory, threads and folders."""

import os
import platform
import tempfile
from pathlib import Path
from typing import NamedTuple

from .findings import Finding, one_line

INSTRUCTION_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 bfloat16",
    "amx_bf16": "AMX bfloat16",
    "asimd": "NEON",
    "sve": "SVE",
    "bf16": "bfloat16",
}
"""Those that decide about speed, by their names in /proc/cpuinfo."""

LEAST_MEMORY = 1024**3
"""Bytes that speech takes, with PyTorch itself."""


class Processor(NamedTuple):
    model: str
    instruction_sets: tuple[str, ...]

    @classmethod
    def here(cls) -> "Processor":
        """This machine's, as far as Linux tells it."""
        try:
            return cls.of(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
        except OSError:
            return cls.of("")

    @classmethod
    def of(cls, cpuinfo: str) -> "Processor":
        """Of the text of /proc/cpuinfo, on x86 or ARM."""
        values: dict[str, str] = {}
        for line in cpuinfo.split("\n"):
            name, _, value = line.partition(":")
            values.setdefault(name.strip(), value.strip())
        flags = set((values.get("flags") or values.get("Features") or "").split())
        found = tuple(title for flag, title in INSTRUCTION_SETS.items() if flag in flags)
        return cls(values.get("model name") or platform.machine(), found)


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def system() -> list[Finding]:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = platform.system()
    detail = f"{name}, kernel {platform.release()}, {platform.machine()}, Python {platform.python_version()}"
    return [Finding("system", "ok", detail)]


def processor() -> list[Finding]:
    found = Processor.here()
    detail = f"{found.model}, {usable_cores()} of {os.cpu_count()} cores usable, "
    detail += ", ".join(found.instruction_sets) or "no vector instructions that matter here"
    if platform.machine() == "x86_64" and "AVX2" not in found.instruction_sets:
        remedy = "in a virtual machine, pass the host's processor through; otherwise use a newer one"
        return [Finding("processor", "warning", f"{detail}: without AVX2 speech is slow", remedy)]
    return [Finding("processor", "ok", detail)]


def memory() -> list[Finding]:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").split("\n")
    kilobytes = {name: int(value.split()[0]) for name, _, value in (x.partition(":") for x in lines) if value}
    total, available = kilobytes["MemTotal"] * 1024, kilobytes["MemAvailable"] * 1024
    detail = f"{total / 2**30:.1f} GiB, {available / 2**30:.1f} GiB available"
    if available < LEAST_MEMORY:
        return [Finding("memory", "warning", f"{detail}: speech takes about 1 GiB", "end other programs")]
    return [Finding("memory", "ok", detail)]


def threads() -> list[Finding]:
    from fastglow.threads import let_threads_sleep, user_choices

    let_threads_sleep()
    import torch

    n, cores = torch.get_num_threads(), usable_cores()
    chosen = ", ".join(f"{name}={value}" for name, value in user_choices().items())
    detail = f"PyTorch runs {n} threads of {torch.backends.cpu.get_cpu_capability()} code on {cores} cores; "
    detail += f"they wait as {chosen} says" if chosen else "they spin briefly and then sleep while they wait"
    if n > cores:
        return [Finding("threads", "warning", detail, f"set OMP_NUM_THREADS={cores}, or unset it")]
    return [Finding("threads", "ok", detail)]


def temporary_folder() -> list[Finding]:
    name = "temporary folder"
    try:
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"written")
            file.flush()
        return [Finding(name, "ok", f"{tempfile.gettempdir()} can be written")]
    except OSError as error:
        remedy = "set TMPDIR to a folder with free space that you may write"
        return [Finding(name, "failed", one_line(str(error)), remedy)]
