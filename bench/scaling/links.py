"""How long an all-reduce takes between the GPUs of a group."""

import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from fastglow.errors import FastglowError
from fastglow.files import replacing
from fastglow.train.ranks import Ranks

MEASURED_BYTES = [2**n for n in range(16, 27)]  # DistributedDataParallel's buckets and around them
ROUNDS = 7


@dataclass(frozen=True)
class Link:
    """An all-reduce of s bytes between n GPUs takes latency + 2 (n - 1) / n * s / bus_bytes_per_second.

    That is a ring's cost, in which each GPU sends each byte 2 (n - 1) / n times, and nccl-tests' bus bandwidth.

    Attributes:
        name: for tables.
        ranks: for which the latency holds; elsewhere it grows with log2 n, as in NCCL's trees.
        latency: seconds.
        bus_bytes_per_second: whatever the number of GPUs.
        source: 'measured', or where the figures come from.
    """

    name: str
    ranks: int
    latency: float
    bus_bytes_per_second: float
    source: str

    def seconds(self, size: int, ranks: int) -> float:
        """Of an all-reduce of `size` bytes."""
        if ranks == 1:
            return 0.0
        latency = self.latency * math.log2(ranks) / math.log2(self.ranks)
        return latency + 2 * (ranks - 1) / ranks * size / self.bus_bytes_per_second


NVLINK = Link("NVLink, 8 GPUs of a node", 8, 20e-6, 370e9, "NVIDIA/nccl-tests issues 212 and 272: H100 and H200, ring")
INFINIBAND = Link(
    "a 400 Gb/s adapter per GPU",
    64,
    100e-6,
    8 * 46e9,
    "NVIDIA/nccl-tests issue 290: 46 GB/s an adapter; latency a guess",
)
ETHERNET = Link("one 100 Gb/s adapter per node", 64, 200e-6, 11.5e9, "92 % of the line rate; latency a guess")
ASSUMED = (NVLINK, INFINIBAND, ETHERNET)


def fitted(name: str, ranks: int, times: Sequence[tuple[int, float]]) -> Link:
    """The link that explains measured all-reduces best, in relative terms.

    Args:
        times: (bytes, seconds) of at least two sizes.

    Raises:
        FastglowError: the times do not grow with the bytes.
    """
    # Minimises sum(((a + b s) / t - 1)^2): buckets of any size count alike.
    xs = [(1 / seconds, size / seconds) for size, seconds in times]
    aa, ab, bb = (sum(x[i] * x[j] for x in xs) for i, j in ((0, 0), (0, 1), (1, 1)))
    a1, b1 = (sum(x[i] for x in xs) for i in (0, 1))
    determinant = aa * bb - ab * ab
    latency, per_byte = (a1 * bb - b1 * ab) / determinant, (b1 * aa - a1 * ab) / determinant
    if latency < 0:  # within noise of a link without latency
        latency, per_byte = 0.0, b1 / bb
    if per_byte <= 0:
        raise FastglowError(f"all-reduces of {len(times)} sizes take no longer for more bytes: measure again")
    return Link(name, ranks, latency, 2 * (ranks - 1) / ranks / per_byte, "measured")


def measure(ranks: Ranks, device: torch.device) -> Link | None:
    """Times all-reduces between the processes; None in all but the first.

    Raises:
        FastglowError: there is one process only.
    """
    if not ranks.several:
        raise FastglowError("world_size=1 has no link to measure: start several processes with torchrun")
    times = []
    for size in MEASURED_BYTES:
        buffer = torch.zeros(size // 4, device=device)
        taken = [_all_reduce_seconds(ranks, buffer) for _ in range(1 + ROUNDS)][1:]
        times.append((size, statistics.median(taken)))
    backend = "NCCL" if device.type == "cuda" else "gloo"
    return fitted(f"{backend}, {ranks.world_size} processes", ranks.world_size, times) if ranks.is_first else None


def _all_reduce_seconds(ranks: Ranks, buffer: torch.Tensor) -> float:
    dist.barrier()
    _wait(buffer)
    begin = time.perf_counter()
    ranks.sum(buffer)
    _wait(buffer)
    return time.perf_counter() - begin


def _wait(buffer: torch.Tensor) -> None:
    if buffer.is_cuda:
        torch.cuda.synchronize(buffer.device)


def save(link: Link, path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(asdict(link), indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> Link:
    """
    Raises:
        FastglowError: not a file of `save`.
    """
    try:
        link = Link(**json.loads(path.read_text(encoding="utf-8")))
        if link.ranks < 2 or not link.latency >= 0 or not link.bus_bytes_per_second > 0:
            raise ValueError("a value is out of range")
    except (OSError, ValueError, TypeError) as error:
        raise FastglowError(
            f"{path} is not a measured link ({error}): make one with `python -m bench.scaling link`"
        ) from error
    return link
