"""The machine and the versions behind a measurement, and the memory that a call takes."""

import platform
import resource
from datetime import datetime
from pathlib import Path

import torch
import triton

from fastglow._version import __version__
from fastglow.diagnosis.machine import Processor

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def describe(device: torch.device) -> dict[str, str | int | None]:
    """Names and versions; 'gpu' is None for a voice on the CPU."""
    return {
        "fastglow": __version__,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "processor": Processor.here().model,
        "threads": torch.get_num_threads(),
    }


class GpuMemory:
    """Of PyTorch's allocator. CUDA graphs have memory of their own, which counts from when they are recorded."""

    method = "most bytes allocated on the GPU during a call, the voice included (torch.cuda.max_memory_allocated)"

    def __init__(self, device: torch.device):
        self.device = device

    def begin(self) -> None:
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated(self.device)

    def reserved_bytes(self) -> int:
        """All that the process has taken from the GPU for tensors."""
        return torch.cuda.memory_reserved(self.device)


class ProcessMemory:
    """Growth of the process's resident memory since this object was made, which is before the voice is loaded."""

    def __init__(self) -> None:
        self._resets = self._reset() and _kilobytes("VmHWM") is not None
        self._before = self._peak()

    @property
    def method(self) -> str:
        peak = "its peak during a call (VmHWM)" if self._resets else "its peak so far (getrusage)"
        return f"growth of the process's resident memory from before the voice was loaded to {peak}"

    def begin(self) -> None:
        if self._resets:
            self._reset()

    def peak_bytes(self) -> int:
        return 1024 * (self._peak() - self._before)

    def reserved_bytes(self) -> None:
        return None

    def _peak(self) -> int:
        peak = _kilobytes("VmHWM") if self._resets else None
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if peak is None else peak

    def _reset(self) -> bool:
        """Sets the peak to what is resident now, where Linux allows it."""
        try:
            _RESET.write_text("5")
        except OSError:
            return False
        return True


def _kilobytes(entry: str) -> int | None:
    try:
        lines = _STATUS.read_text(encoding="utf-8").split("\n")
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{entry}:")), None)


def memory_of(device: torch.device) -> GpuMemory | ProcessMemory:
    return GpuMemory(device) if device.type == "cuda" else ProcessMemory()
