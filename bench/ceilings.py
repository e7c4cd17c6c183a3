"""The machine's measured ceilings: no program reaches the peaks of the data sheet."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fastglow.kernels.arguments import dtype_name
from fastglow.kernels.cpu import fast_dtype

from .precision import IEEE, tf32
from .timing import event_seconds
from .workload import Cost

COPIED_BYTES = {"cuda": 2**30, "cpu": 2**26}
MATRIX_SIZE = {"cuda": 8192, "cpu": 2048}
READ_BYTES = [2**n for n in range(24, 28)]
WARM_CALLS, REPEATS = {"cuda": 3, "cpu": 1}, {"cuda": 10, "cpu": 3}


@dataclass(frozen=True)
class Ceilings:
    """
    Attributes:
        bytes_per_second: of a copy, counting bytes read and bytes written.
        flops_per_second: of a matrix product, by dtype name; on a GPU, float32 is TF32, and `precision.IEEE` is
            float32 without it.
        reads: on a CPU, (bytes, bytes per second) of reading so much memory again and again.
    """

    bytes_per_second: float
    flops_per_second: dict[str, float]
    reads: Sequence[tuple[int, float]] = ()

    def floor(self, cost: Cost, dtype: str) -> tuple[float, str]:
        """(fewest seconds for `cost`, its bound: 'memory' or 'arithmetic')."""
        moving = cost.bytes / self.memory_rate(cost)
        computing = cost.flops / self.flops_per_second[dtype] if dtype in self.flops_per_second else 0.0
        return (moving, "memory") if moving >= computing else (computing, "arithmetic")

    def memory_rate(self, cost: Cost) -> float:
        """Bytes per second: of a copy, or of reading the largest measured size that is not larger than `reread`."""
        if cost.reread is None or not self.reads:
            return self.bytes_per_second
        fitting = [read for read in self.reads if read[0] <= cost.reread] or [min(self.reads)]
        return max(fitting)[1]


def measure_ceilings(device: torch.device) -> Ceilings:
    """Takes well under a second on a GPU; on two CPU cores less than a second."""
    on_a_cpu = list(dict.fromkeys((fast_dtype(), torch.float32)))
    dtypes = [torch.float16, torch.bfloat16, torch.float32] if device.type == "cuda" else on_a_cpu
    with tf32(True):
        rates = {dtype_name(dtype): _matrix_rate(device, dtype) for dtype in dtypes}
    if device.type == "cuda":
        with tf32(False):
            rates[IEEE] = _matrix_rate(device, torch.float32)
    reads = [(n, _read_rate(n)) for n in READ_BYTES] if device.type == "cpu" else ()
    return Ceilings(_copy_rate(device), rates, reads)


def _copy_rate(device: torch.device) -> float:
    n = COPIED_BYTES[device.type]
    source = torch.randn(n // 4, device=device)
    target = torch.empty_like(source)
    return 2 * n / _seconds(lambda: target.copy_(source), device)


def _read_rate(n: int) -> float:
    """Of a sum over float32, on a CPU: of PyTorch's operations that only read, none is faster."""
    source = torch.randn(n // 4)
    return n / _seconds(source.sum, source.device)


def _matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    n = MATRIX_SIZE[device.type]
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * n**3 / _seconds(lambda: torch.mm(a, b, out=out), device)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Of a call: on a GPU the median, on a CPU the fewest, because other processes only slow it down."""
    for _ in range(WARM_CALLS[device.type]):
        call()
    if device.type == "cuda":
        return statistics.median(event_seconds(call) for _ in range(REPEATS[device.type]))
    times = []
    for _ in range(REPEATS[device.type]):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
