"""The machine's measured ceilings: no program reaches the peaks of the data sheet."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastglow.kernels.arguments import dtype_name

from .precision import IEEE, cpu_has_bf16, tf32
from .timing import event_seconds
from .workload import Cost

COPIED_BYTES = {"cuda": 2**30, "cpu": 2**26}
MATRIX_SIZE = {"cuda": 8192, "cpu": 768}
REPEATS = 10


@dataclass(frozen=True)
class Ceilings:
    """
    Attributes:
        bytes_per_second: of a copy, counting bytes read and bytes written.
        flops_per_second: of a matrix product, by dtype name; on a GPU, float32 is TF32, and `precision.IEEE` is
            float32 without it.
    """

    bytes_per_second: float
    flops_per_second: dict[str, float]

    def floor(self, cost: Cost, dtype: str) -> tuple[float, str]:
        """(fewest seconds for `cost`, its bound: 'memory' or 'arithmetic')."""
        moving = cost.bytes / self.bytes_per_second
        computing = cost.flops / self.flops_per_second[dtype] if dtype in self.flops_per_second else 0.0
        return (moving, "memory") if moving >= computing else (computing, "arithmetic")


def measure_ceilings(device: torch.device) -> Ceilings:
    """Takes well under a second."""
    dtypes = [torch.float32]
    if device.type == "cuda":
        dtypes = [torch.float16, torch.bfloat16, torch.float32]
    elif cpu_has_bf16():
        dtypes = [torch.bfloat16, torch.float32]
    with tf32(True):
        rates = {dtype_name(dtype): _matrix_rate(device, dtype) for dtype in dtypes}
    if device.type == "cuda":
        with tf32(False):
            rates[IEEE] = _matrix_rate(device, torch.float32)
    return Ceilings(_copy_rate(device), rates)


def _copy_rate(device: torch.device) -> float:
    n = COPIED_BYTES[device.type]
    source = torch.randn(n // 4, device=device)
    target = torch.empty_like(source)
    return 2 * n / _seconds(lambda: target.copy_(source), device)


def _matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    n = MATRIX_SIZE[device.type]
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * n**3 / _seconds(lambda: torch.mm(a, b, out=out), device)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    for _ in range(3):
        call()
    if device.type == "cuda":
        return statistics.median(event_seconds(call) for _ in range(REPEATS))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
