"""Compiles cases for an architecture and writes reports; `ahead_of_time.compile_for` starts it.

The cases run public functions on meta tensors, forward and backward, with every launch configuration of their kernels,
in a process whose Triton driver reports a GPU of the architecture.
"""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from fastglow import kernels
from fastglow.kernels import launch
from fastglow.kernels.backend import use_backend

from .prefetching import PTX, SASS, used_before_the_poll, waits_with_loads
from .reports import ARCHITECTURES, Case, Compiled, Report

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"  # in the wheel of every version


class _Compiler:
    """Runs cases and keeps the kernels that they compile."""

    def __init__(self, arch: int) -> None:
        self._arch = arch
        self.compiled: dict[tuple, Compiled] = {}
        self.errors: list[str] = []
        self.offered: list[tuple[str, str, dict]] = []

    def run(self, case: Case, precision: str) -> None:
        with _tf32(precision == "tf32"):
            with launch.record_choices() as choices:
                self._run(case, precision)
            if precision not in case.swept.get(self._arch, ()):
                return
            for kernel, candidates in {choice.kernel: choice.candidates for choice in choices}.items():
                for config in candidates:
                    if "num_warps" in config:  # else a choice between kernels
                        self.offered.append((f"{kernel}_kernel", precision, dict(config)))
                    self._run(case, precision, (kernel, config))

    def _run(self, case: Case, precision: str, forced: tuple[str, launch.Config] | None = None) -> None:
        dtype = torch.float32 if precision == "tf32" else getattr(torch, precision)
        what = f"{case.name}, {precision}" + ("" if forced is None else f", {forced[0]} with {forced[1]}")
        forcing = nullcontext() if forced is None else launch.use_config(*forced)
        with use_backend("triton"), launch.compile_only() as compiled, forcing:
            try:
                case.run(dtype)
            # Any failure of the compiler is reported; the other cases go on.
            except Exception:
                self.errors.append(f"{what}: {traceback.format_exc()}")
            else:
                if not compiled:
                    self.errors.append(f"{what}: no kernel was launched")
        for _, kernel, binary in compiled:
            # While one kernel's configurations are swept, the other kernels are compiled again unchanged.
            identity = (kernel, precision, binary.hash)
            if identity not in self.compiled:
                self.compiled[identity] = _examine(case, precision, kernel, binary)


def _examine(case: Case, precision: str, kernel: str, binary: Any) -> Compiled:
    ptx = re.sub(r"//.*", "", binary.asm["ptx"])
    options = constants_of(binary.src) | {
        "num_warps": binary.metadata.num_warps,
        "num_stages": binary.metadata.num_stages,
    }
    usage = resource_usage(binary.asm["cubin"])
    sass = _dump(binary.asm["cubin"], "-sass") if options.get("PREFETCH") else ""
    return Compiled(
        module=binary.src.fn.__module__,
        kernel=kernel,
        case=case.name,
        precision=precision,
        options=options,
        registers=usage["REG"],
        # The kernel has no calls and no arrays, so its stack holds only spilled registers.
        local=usage["STACK"] + usage["LOCAL"],
        # The cubin counts only the system's reserve; Triton sets shared memory at launch.
        shared=binary.metadata.shared,
        tensor_memory=getattr(binary.metadata, "tmem_size", None) or 0,
        products=sorted(set(re.findall(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b[\w.:]*", ptx))),
        rows=[options[name] for name in case.tensor_cores.get(kernel, "").split() if options[name] is not None],
        float64=re.search(r"\.f64\b", ptx) is not None,
        prefetched=[*waits_with_loads(ptx, PTX), *waits_with_loads(sass, SASS)] if sass else [],
        used_early=used_before_the_poll(sass),
    )


def resource_usage(cubin: bytes) -> dict[str, int]:
    """REG, STACK, LOCAL, ... of the only kernel in a binary."""
    printed = _dump(cubin, "--dump-resource-usage")
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", printed)}


def _dump(cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([str(CUOBJDUMP), option, file.name], check=True, capture_output=True, text=True).stdout


class Driver:
    """The part of a Triton driver that compiling needs."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = allowed
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def constants_of(source: Any) -> dict[str, Any]:
    """The constants of a compiled function's source, by name.

    These are constexpr parameters, and constexpr fields of struct arguments, which go by the field's name alone. Where
    two structs have different values for one name, each goes by its path instead:
    "forward.BK" and "backward.BK".
    """
    paths: dict[str, dict[str, Any]] = {}
    for (i, *fields), value in source.constants.items():
        parameter = source.fn.params[i]
        # Triton also makes a constant of every integer argument that is 1.
        if not (isinstance(value, triton.language.constexpr) if fields else parameter.is_constexpr):
            continue
        names, struct = [parameter.name], source.signature[parameter.name]
        for field in fields:
            names.append(struct._fields[field])
            struct = struct[field]
        value = getattr(value, "value", value)
        value = value if isinstance(value, bool | int | float | str | None) else str(value)
        paths.setdefault(names[-1], {})[".".join(names)] = value
    constants: dict[str, Any] = {}
    for name, values in paths.items():
        first, *others = values.values()
        constants |= {name: first} if all(value == first for value in others) else values
    return constants


def _listed_configs(modules: Iterable[str]) -> list[tuple[str, dict]]:
    """Configurations in the modules' constants named CONFIGS or *_CONFIGS."""

    def configs(value: Any) -> Iterator[dict]:
        if isinstance(value, Mapping) and "num_warps" in value:
            yield dict(value)
        elif isinstance(value, Mapping | tuple):
            for item in value.values() if isinstance(value, Mapping) else value:
                yield from configs(item)

    return [
        (f"{module}.{name}", config)
        for module in modules
        for name, value in vars(importlib.import_module(module)).items()
        if re.fullmatch(r"(\w*_)?CONFIGS", name)
        for config in configs(value)
    ]


def _modules_of_operation(module: str) -> list[str]:
    """A kernel's module; all modules of the folder, if the operation is one."""
    name = module.removeprefix(f"{kernels.__name__}.").partition(".")[0]
    operation = f"{kernels.__name__}.{name}"
    if not module.startswith(f"{operation}."):
        return [module]
    return [other for other in sys.modules if other == operation or other.startswith(f"{operation}.")]


def _report(arch: int, cases: str) -> Report:
    compiler = _Compiler(arch)
    for case in importlib.import_module(cases).CASES:
        for precision in case.precisions.get(arch, ()):
            compiler.run(case, precision)
    compiled = list(compiler.compiled.values())
    modules = {name for kernel in compiled for name in _modules_of_operation(kernel.module)}
    listed = _listed_configs(sorted(modules))
    return Report(arch, compiled, compiler.errors, compiler.offered, listed)


def _main() -> None:
    parser = argparse.ArgumentParser(description="Compile the kernels of cases for an architecture.")
    parser.add_argument("arch", type=int, choices=ARCHITECTURES)
    parser.add_argument("key", help="to write into the file")
    parser.add_argument("file", type=Path, help="for the reports")
    parser.add_argument("cases", nargs="+", help="modules with CASES")
    arguments = parser.parse_args()
    triton.runtime.driver.set_active(Driver(GPUTarget("cuda", arguments.arch, 32)))
    reports = {cases: asdict(_report(arguments.arch, cases)) for cases in arguments.cases}
    unfinished = arguments.file.with_suffix(".tmp")
    unfinished.write_text(json.dumps({"key": arguments.key, "reports": reports}), encoding="utf-8")
    os.replace(unfinished, arguments.file)


if __name__ == "__main__":
    _main()
