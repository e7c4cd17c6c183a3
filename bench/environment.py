"""The machine and versions behind a measurement."""

import hashlib
import json
import os
import platform
import subprocess
from functools import lru_cache
from pathlib import Path

import torch
import triton

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
BASELINES = ROOT / "bench" / "baselines"


_assumes_gpu = False


def assume_gpu() -> None:
    """Gives the benchmarks that are imported later their published sizes, with tensors on the CPU."""
    global _assumes_gpu
    _assumes_gpu = True


def has_gpu() -> bool:
    return _assumes_gpu or torch.cuda.is_available()


def device() -> torch.device:
    return torch.device("cuda" if has_gpu() and not _assumes_gpu else "cpu")


@lru_cache
def describe() -> dict[str, str | None]:
    """gpu (None on a machine without one), torch, triton, commit; without a GPU also the `processor`."""
    return {
        "gpu": torch.cuda.get_device_name() if has_gpu() else None,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": _commit(),
        **({} if has_gpu() else processor()),
    }


def processor() -> dict[str, str]:
    """processor (its model's name on Linux), capability (the instructions that PyTorch uses), threads that it uses."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }


def key() -> str:
    """A short name for the machine and versions, the same for the same ones."""
    return hashlib.sha256(json.dumps(describe(), sort_keys=True).encode()).hexdigest()[:12]


def kernel_cache() -> Path:
    """Triton's folder of compiled kernels."""
    if knobs := getattr(triton, "knobs", None):  # since Triton 3.4
        return Path(knobs.cache.dir)
    return Path(os.environ.get("TRITON_CACHE_DIR") or triton.runtime.cache.default_cache_dir())


def _commit() -> str:
    """Abbreviated, with '+' if tracked files differ from it; 'unknown' outside a git checkout."""
    try:
        commit, changes = (
            subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for arguments in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + "+" * bool(changes)
