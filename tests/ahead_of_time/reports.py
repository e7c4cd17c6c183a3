"""Compiles the kernels for GPUs that this machine lacks, and checks the binaries.

The test process cannot compile: without a GPU it sets TRITON_INTERPRET. `compile_for` runs
`worker` in another process.
"""

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "kernels"
WORKER = "tests.ahead_of_time.worker"
CASES = "tests.ahead_of_time.cases"
FAULTS = "tests.ahead_of_time.faults"

KIB = 1024


@dataclass(frozen=True)
class Architecture:
    """A chip's limits per block (CUDA C++ Programming Guide, compute capabilities) and its tensor cores."""

    shared: int  # bytes of shared memory, without the 1 KiB reserved for the system
    instruction: str  # the PTX instruction of its tensor cores
    rows: int  # fewest rows of a product for this instruction; smaller products use mma.sync


TENSOR_MEMORY = 512  # columns, on chips that have it
ARCHITECTURES = {
    80: Architecture(163 * KIB, "mma.sync", 16),
    90: Architecture(227 * KIB, "wgmma.mma_async", 64),
    100: Architecture(227 * KIB, "tcgen05.mma", 64),
}

# By precision: the operand type in PTX where tensor cores multiply; None: no tensor cores.
PRECISIONS = {"float32": None, "tf32": "tf32", "float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Case:
    """One way of calling an operation.

    Attributes:
        name: the operation and its options.
        run: calls the public function on meta tensors of a dtype, and its backward.
        precisions: keys of PRECISIONS to run it in, by architecture.
        swept: precisions in which every launch configuration is compiled, by architecture; in the others, only the
            configuration that is picked.
        tensor_cores: kernels that must use tensor cores, except in float32, and the constexpr parameters or fields,
            separated by spaces, that hold the rows of their products.
    """

    name: str
    run: Callable[[Any], None]
    precisions: Mapping[int, tuple[str, ...]]
    swept: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    tensor_cores: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Compiled:
    """A compiled kernel and the resources of its binary."""

    module: str
    kernel: str
    case: str
    precision: str
    options: dict[str, Any]  # constexpr parameters and fields of structs, num_warps, num_stages
    registers: int  # per thread
    local: int  # bytes of local memory per thread: spilled registers
    shared: int  # bytes per block
    tensor_memory: int  # columns
    products: list[str]  # the distinct tensor core instructions
    rows: list[int]  # of each product that must use tensor cores; empty: no product must
    float64: bool
    prefetched: list[int]  # by barrier, in PTX and then in machine code: loads between arrival and wait
    used_early: list[str]  # instructions that use them before the wait

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.kernel}[{self.precision}, {self.case}: {options}]"


@dataclass(frozen=True)
class Report:
    """The result of compiling all cases for one architecture."""

    arch: int
    compiled: list[Compiled]
    errors: list[str]
    offered: list[tuple[str, str, dict]]  # (kernel, precision, configuration): candidates of `pick_config`
    listed: list[tuple[str, dict]]  # (name, configuration) in the modules' CONFIGS

    def spilled(self) -> list[str]:
        return [f"{x} keeps {x.local} bytes in local memory" for x in self.compiled if x.local]

    def oversized(self) -> list[str]:
        limit = ARCHITECTURES[self.arch].shared
        return [f"{x} takes {x.shared} bytes of shared memory" for x in self.compiled if x.shared > limit] + [
            f"{x} takes {x.tensor_memory} columns of tensor memory"
            for x in self.compiled
            if x.tensor_memory > TENSOR_MEMORY
        ]

    def wrong_instructions(self) -> list[str]:
        """Kernels whose products wrongly use tensor cores, do not use them, or use the wrong operand type."""
        return [
            f"{x} multiplies by {x.products or 'no tensor core'}"
            for x in self.compiled
            if not self._uses_expected_instruction(x)
        ]

    def in_float64(self) -> list[str]:
        return [f"{x} computes in float64" for x in self.compiled if x.float64]

    def late_loads(self) -> list[str]:
        """Kernels that should load PREFETCH blocks before every wait, and use them after it, but do not."""
        return [
            f"{x} loads {x.prefetched} before its waits and uses them in {x.used_early}"
            for x in self.compiled
            if x.options.get("PREFETCH")
            and (not x.prefetched or min(x.prefetched) < x.options["PREFETCH"] or x.used_early)
        ]

    def unused_configurations(self) -> list[str]:
        """Candidates that were not compiled, and listed configurations that are never candidates."""
        used: dict[tuple[str, str], list[dict]] = {}
        for x in self.compiled:
            used.setdefault((x.kernel, x.precision), []).append(x.options)
        return [
            f"{kernel}[{precision}] was not compiled with {config}"
            for kernel, precision, config in self.offered
            if not any(config.items() <= options.items() for options in used.get((kernel, precision), ()))
        ] + [
            f"no kernel may be given {config} of {name}"
            for name, config in self.listed
            if config not in [offered for _, _, offered in self.offered]
        ]

    def _uses_expected_instruction(self, x: Compiled) -> bool:
        operand = PRECISIONS[x.precision]
        if not x.rows or operand is None:
            return not x.products
        chip = ARCHITECTURES[self.arch]
        expected = {chip.instruction if rows >= chip.rows else "mma.sync" for rows in x.rows}
        found: set[str] = set()
        for product in x.products:
            instruction = next((y for y in expected if product.startswith(y)), None)
            if instruction is None:
                return False
            # tcgen05.mma is written with f16 for bfloat16 too.
            type_ = operand.replace("bf16", "f16") if instruction == "tcgen05.mma" else operand
            if not re.search(rf"[.:]{type_}\b", product):
                return False
            found.add(instruction)
        return found == expected


def defined_kernels(files: Iterable[Path]) -> set[str]:
    """Names of the @triton.jit functions that end in _kernel: they are launched, all others are inlined."""
    return {
        node.name
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        and node.name.endswith("_kernel")
        and any(ast.unparse(decorator).startswith("triton.jit") for decorator in node.decorator_list)
    }


def compile_for(arch: int, folder: Path) -> dict[str, Report]:
    """The reports of CASES and FAULTS, from the cache in `folder` if nothing has changed.

    Raises:
        RuntimeError: the worker failed.
    """
    path = folder / f"sm_{arch}.json"
    key = _key()
    reports = read_reports(path, key)
    if reports is None:
        environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "FASTGLOW_BACKEND")}
        command = [sys.executable, "-m", WORKER, str(arch), key, str(path), CASES, FAULTS]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        reports = read_reports(path, key)
        if done.returncode or reports is None:
            raise RuntimeError(f"compiling for sm_{arch} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        if reports[CASES].errors:  # perhaps not the kernels' fault, so not cached
            path.unlink()
    return reports


def read_reports(path: Path, key: str) -> dict[str, Report] | None:
    """None if the file is absent or has another key."""
    written = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if written.get("key") != key:
        return None
    return {
        cases: Report(**report | {"compiled": [Compiled(**x) for x in report["compiled"]]})
        for cases, report in written["reports"].items()
    }


def _key() -> str:
    """A hash of everything that affects compilation."""
    files = [*sorted(KERNELS.rglob("*.py")), *sorted(Path(__file__).parent.glob("*.py"))]
    digest = hashlib.sha256(" ".join(metadata.version(name) for name in ("triton", "torch")).encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
