"""Compiles recorded launches for sm_90 and reads the binaries' resources.

Runs in a process of its own, whose Triton driver reports an H100: `python -m bench.cost_model.binaries IN OUT`.
"""

import hashlib
import importlib
import json
import pickle
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
ARCHITECTURE = 90
LAUNCH_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion", "launch_cooperative_grid")


@dataclass(frozen=True)
class Binary:
    """
    Attributes:
        registers: per thread.
        shared: bytes per block.
        stages: of the loops' load pipelines.
        product: instruction of the matrix products: 'wgmma', 'mma', either with ' tf32', or '' without tensor cores.
        narrow: share of the global loads and stores in the code that move less than four bytes per thread.
        bytes_of_code: of a block, if it executed each of its global loads and stores once and masked none.
        flops_of_code: of a block, if it executed each of its tensor core instructions once.
    """

    registers: int
    shared: int
    warps: int
    stages: int
    product: str
    narrow: float
    bytes_of_code: int
    flops_of_code: int


def identity(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()[:16]


def compile_launch(source: bytes) -> tuple[Binary, str]:
    """(resources, PTX) of what `counting` pickled."""
    module, name, grid, arguments = pickle.loads(source)
    kernel = getattr(importlib.import_module(module), name)
    options = {key: value for key, value in arguments.items() if key in LAUNCH_OPTIONS}
    # By position: Triton takes some names, such as `stream`, for options.
    given = [arguments[key] for key in kernel.arg_names]
    compiled = kernel.warmup(*given, grid=grid, **options)
    ptx = re.sub(r"//.*", "", compiled.asm["ptx"])
    usage = _resource_usage(compiled.asm["cubin"])
    product = "wgmma" if "wgmma.mma_async" in ptx else "mma" if "mma.sync" in ptx else ""
    if product and ".tf32" in ptx:
        product += " tf32"
    stages = max([compiled.metadata.num_stages or 1, *map(int, re.findall(r"cp\.async\.wait_group\s+(\d+)", ptx))])
    widths = list(map(_width, re.findall(r"\b(?:ld|st)\.global[\w.:]*", ptx)))
    copied = map(int, re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*?,\s*0x([0-9a-f]+)", ptx))
    warps = compiled.metadata.num_warps
    narrow = sum(width < 4 for width in widths) / max(1, len(widths))
    binary = Binary(
        usage["REG"],
        compiled.metadata.shared,
        warps,
        stages,
        product,
        round(narrow, 2),
        bytes_of_code=32 * warps * (sum(widths) + sum(copied)),
        flops_of_code=warps * _flops(ptx),
    )
    return binary, ptx


def _flops(ptx: str) -> int:
    """Of a warp, which executes a quarter of a wgmma."""
    shapes = re.findall(r"\b(wgmma|mma)\.[\w.:]*?\.m(\d+)n(\d+)k(\d+)\.", ptx)
    return sum(2 * int(m) * int(n) * int(k) // (4 if name == "wgmma" else 1) for name, m, n, k in shapes)


def _width(instruction: str) -> int:
    """Bytes per thread: ld.global.v4.b32 -> 16."""
    vector = re.search(r"\.v(\d)", instruction)
    element = re.search(r"\.[busf](\d+)", instruction)
    return (int(vector.group(1)) if vector else 1) * (int(element.group(1)) // 8 if element else 4)


def _resource_usage(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", printed)}


class _Driver:
    """The part of a Triton driver that compiling needs."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", ARCHITECTURE, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def pretend_gpu() -> None:
    """Makes Triton compile for the architecture in this process."""
    triton.runtime.driver.set_active(_Driver())


def main(source: Path, target: Path) -> None:
    pretend_gpu()
    launches = pickle.loads(source.read_bytes())
    binaries = {identity(launch): asdict(compile_launch(launch)[0]) for launch in launches}
    target.write_text(json.dumps(binaries), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
