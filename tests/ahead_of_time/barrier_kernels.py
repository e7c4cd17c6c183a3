"""PTX of the decode loop, and of a small kernel with the grid barriers of copies of it, as JSON on standard output.

Runs in a process of its own: the test process interprets kernels.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget

from fastglow.kernels.backend import use_backend
from fastglow.kernels.launch import compile_only, launch, use_config
from tests.execution.mutants import Replacement, mutated_kernels

from .calls_decode_loop import CASES
from .worker import Driver


@triton.jit
def exchange_kernel(
    x, y, p_barrier, n, BLOCK: tl.constexpr, SPLIT: tl.constexpr, WAIT_FOR_ALL: tl.constexpr, ARRIVE: tl.constexpr,
    WAIT: tl.constexpr,
):  # fmt: skip
    """Each program stores a block and loads another's, twice."""
    o = tl.arange(0, BLOCK)
    alive = 1
    for i in tl.static_range(2):
        tl.store(y + tl.program_id(0) * BLOCK + o, tl.load(x + o) + i)
        if SPLIT:
            ARRIVE(p_barrier)
            alive = WAIT(p_barrier, n * (i + 1), 64, alive)
        else:
            alive = WAIT_FOR_ALL(p_barrier, n * (i + 1), 64, alive)
        x = y + (tl.program_id(0) + 1) % n * BLOCK
    tl.store(y + o, tl.load(x + o) * alive)


def ptx_of_loop(precision: str, n_prefetched: int) -> str:
    config = {"PREFETCH": n_prefetched, "num_warps": 8}
    with use_config("decode_loop", config), use_backend("triton"), compile_only() as compiled:
        CASES[0].run(getattr(torch, precision))
    (ptx,) = (binary.asm["ptx"] for _, kernel, binary in compiled if kernel == "decode_loop_kernel")
    return ptx


def ptx_of_copy(split: bool, *replacements: Replacement) -> str:
    with tempfile.TemporaryDirectory() as folder:
        copy = mutated_kernels(Path(folder), *replacements)
        x = torch.empty(1 << 20, device="meta")
        barrier = torch.empty(1, dtype=torch.int32, device="meta")
        with compile_only() as compiled:
            launch(
                "made_up", exchange_kernel, (8,), x, x, barrier, 8, device=x.device, BLOCK=1024, SPLIT=split,
                WAIT_FOR_ALL=copy._wait_for_all, ARRIVE=copy._arrive, WAIT=copy._wait, num_warps=4,
            )  # fmt: skip
    return compiled[0][2].asm["ptx"]


def main() -> None:
    """Arguments: the architecture; JSON: faults by name, each a list of replacements."""
    arch, faults = int(sys.argv[1]), json.loads(sys.argv[2])
    triton.runtime.driver.set_active(Driver(GPUTarget("cuda", arch, 32)))
    written = {"loop 0": ptx_of_loop("bfloat16", 0), "loop 4": ptx_of_loop("bfloat16", 4)}
    for split in (False, True):
        for name, replacements in faults.items():
            written[f"{name} {split}"] = ptx_of_copy(split, *map(tuple, replacements))
    json.dump(written, sys.stdout)


if __name__ == "__main__":
    main()
