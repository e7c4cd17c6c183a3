"""Checks of the GPUs: driver, PyTorch's build, devices, and what Triton needs to build its kernels for them."""

import mmap
import re
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .findings import Finding, Status, one_line, remedy_for

if TYPE_CHECKING:
    import torch

OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
"""Major version of the oldest NVIDIA driver by that of CUDA: NVIDIA, CUDA compatibility, "Minor version
compatibility"."""

BFLOAT16_CAPABILITY = (8, 0)
LEAST_MEMORY = 2 * 1024**3  # bytes free on the GPU

REMEDY = "see that torch and triton load (above), and that nvidia-smi runs; else restart the machine"

_MODULE_VERSION = Path("/proc/driver/nvidia/version")


class Driver(NamedTuple):
    """NVIDIA's driver, whatever torch makes of it."""

    version: str
    gpus: tuple[str, ...]  # names; empty if only the kernel module was found

    def __str__(self) -> str:
        return f"NVIDIA driver {self.version}" + (f" with {', '.join(self.gpus)}" if self.gpus else "")


def find_driver() -> Driver | None:
    query = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
        rows = [line.split(", ", 1) for line in done.stdout.split("\n") if ", " in line]
        if done.returncode == 0 and rows:
            return Driver(rows[0][0], tuple(name for _, name in rows))
    except (OSError, subprocess.TimeoutExpired):
        pass
    try:
        match = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", _MODULE_VERSION.read_text(encoding="utf-8"))
    except OSError:
        return None
    return Driver(match[1], ()) if match else None


def gpus() -> list[Finding]:
    import torch

    driver, build = find_driver(), f"torch {torch.__version__}"
    if torch.cuda.is_available():
        found = [Finding("driver", "ok", f"{driver or 'no NVIDIA driver'}; {build}, CUDA {torch.version.cuda}")]
        return found + [_device(torch.device("cuda", i)) for i in range(torch.cuda.device_count())]
    if driver is None:
        return [Finding("GPU", "warning", "no NVIDIA GPU or driver: everything runs on the CPU")]
    if torch.version.cuda is None:
        remedy = "unset PIP_EXTRA_INDEX_URL, then pip install --force-reinstall torch: PyPI's build has CUDA"
        return [Finding("GPU", "failed", f"{driver}, but {build} is a build for the CPU", remedy)]
    return [_unavailable(driver, f"{build} for CUDA {torch.version.cuda}", torch.version.cuda)]


def _unavailable(driver: Driver, build: str, cuda: str) -> Finding:
    """There is a driver, and torch has CUDA but finds no GPU."""
    import torch

    oldest = OLDEST_DRIVER.get(int(cuda.split(".")[0]))
    if oldest is not None and int(driver.version.split(".")[0]) < oldest:
        remedy = f"update the driver to {oldest} or newer, or install a torch for an older CUDA"
        return Finding("GPU", "failed", f"{driver} is too old for {build}", remedy)
    try:
        torch.cuda.init()
        reason = "it finds no GPU"
    except Exception as error:
        reason = one_line(str(error))
    remedy = (
        "check CUDA_VISIBLE_DEVICES; in a container, pass the GPU (docker run --gpus all); else restart the machine"
    )
    return Finding("GPU", "failed", f"{driver}, but {build} cannot use it: {reason}", remedy)


def _device(device: "torch.device") -> Finding:
    import torch

    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    name, title = f"GPU {device.index}", f"{properties.name}, capability {properties.major}.{properties.minor}"
    try:
        total = torch.ones(3, device=device).sum().item()
        free, whole = torch.cuda.mem_get_info(device)
    except Exception as error:
        remedy = remedy_for(str(error)) or "restart the machine; if that does not help, reinstall driver and torch"
        return Finding(name, "failed", one_line(f"{title}: {error}"), remedy)
    detail = f"{title}, {whole / 2**30:.1f} GiB, {free / 2**30:.1f} GiB free"
    if total != 3:
        return Finding(name, "failed", f"{detail}: 1 + 1 + 1 gave {total}", "reinstall driver and torch")
    if capability < BFLOAT16_CAPABILITY:
        return Finding(name, "warning", f"{detail}: no bfloat16", "use float16 or float32")
    if free < LEAST_MEMORY:
        return Finding(name, "warning", detail, "end other programs on this GPU")
    return Finding(name, "ok", detail)


def launch_configurations() -> list[Finding]:
    """Whether the kernels were tuned for these GPUs."""
    import torch

    from fastglow.kernels.launch import CONFIG_FOLDER, gpu_slug

    findings = []
    for name in sorted({torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}):
        file = CONFIG_FOLDER / f"{gpu_slug(name)}.json"
        if file.exists():
            findings.append(Finding("launch configurations", "ok", f"measured on {name}: {file}"))
        else:
            detail = f"none measured on {name}: heuristics decide, and kernels may be slower than they could be"
            findings.append(Finding("launch configurations", "warning", detail, "run make tune in a checkout"))
    return findings


def compiler() -> list[Finding]:
    """Whether the C code with which Triton launches a kernel compiles here."""
    import triton

    build = getattr(getattr(triton, "knobs", None), "build", None)  # before Triton 3.4 there are no knobs
    chosen = build.cc if build else None
    program = chosen or shutil.which("gcc") or shutil.which("clang")
    if program is None:
        return [_for_kernels("C compiler", "there is no gcc and no clang", "apt install gcc")]
    include = sysconfig.get_paths()["include"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "launcher.c")
        source.write_text("#include <Python.h>\nint launcher(void) { return PY_VERSION_HEX; }\n", encoding="utf-8")
        command = [program, str(source), "-shared", "-fPIC", f"-I{include}", "-o", f"{folder}/launcher.so"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
            code, output = done.returncode, done.stderr
        except OSError as error:
            code, output = 127, str(error.strerror)
    if code:
        detail = next((line for line in output.split("\n") if "error" in line), output)
        remedy = remedy_for(detail) or ("unset CC" if chosen else "apt install --reinstall gcc libc6-dev")
        return [
            _for_kernels(
                "C compiler", one_line(f"{program} ended with code {code}: {detail or 'it said nothing'}"), remedy
            )
        ]
    return [Finding("C compiler", "ok", f"{program} compiles Triton's launcher")]


def kernel_cache() -> list[Finding]:
    """Whether Triton may write compiled kernels into its cache, and run them from there."""
    from triton.runtime.cache import get_cache_manager

    name, remedy = (
        "Triton's cache",
        "set TRITON_CACHE_DIR to a folder that you may write, on a disk that allows execution",
    )
    try:
        path = Path(get_cache_manager("00" * 32).put(b"fastglow doctor", "check"))
    except OSError as error:
        return [_for_kernels(name, one_line(str(error)), remedy_for(str(error)) or remedy)]
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_EXEC):
            pass
    except OSError as error:
        return [_for_kernels(name, f"{path.parent.parent} does not allow execution: {error.strerror}", remedy)]
    finally:
        path.unlink(missing_ok=True)
    return [Finding(name, "ok", f"{path.parent.parent} can be written")]


def _for_kernels(name: str, detail: str, remedy: str) -> Finding:
    """A failure where there is a GPU, and a warning where no kernel is compiled."""
    import torch

    status: Status = "failed" if torch.cuda.is_available() else "warning"
    return Finding(name, status, detail, remedy)
