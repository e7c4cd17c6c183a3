"""Checks of GPUs, driver and Triton's needs, on machines that are planted."""

import mmap
import sys
from types import SimpleNamespace

import pytest
import torch

from fastglow.diagnosis import gpus
from fastglow.diagnosis.gpus import Driver, find_driver
from fastglow.kernels import launch

H100 = Driver("570.86.15", ("NVIDIA H100", "NVIDIA H100"))
MODULE = "NVRM version: NVIDIA UNIX {}x86_64 Kernel Module{}  550.54.14  Thu Feb 22 01:44:30 UTC 2024\nGCC 12\n"


@pytest.fixture
def program(tmp_path, monkeypatch):
    """`program("gcc", "exit 1")`: a shell script, the only program of this name that is found."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CC", raising=False)

    def make(name: str, script: str) -> str:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
        return str(folder / name)

    return make


@pytest.fixture
def module_version(tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "_MODULE_VERSION", tmp_path / "version")
    return tmp_path / "version"


@pytest.fixture
def machine(monkeypatch):
    """`machine(driver, cuda="12.8", error="...")`: a driver, and a torch that finds no GPU."""

    def plant(driver: Driver | None, cuda: str | None, error: str | None = None) -> None:
        def init() -> None:
            if error:
                raise RuntimeError(error)

        monkeypatch.setattr(gpus, "find_driver", lambda: driver)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "init", init)

    return plant


@pytest.fixture
def device(monkeypatch):
    """`device(name="NVIDIA L4", major=8, ...)`: a GPU that torch finds, whose sums are made on the CPU."""
    ones = torch.ones

    def plant(name="NVIDIA L4", major=8, minor=9, free=20, result=3.0, error=None) -> None:
        def planted_ones(n, device):
            if error:
                raise RuntimeError(error)
            return ones(n) * (result / 3)

        properties = SimpleNamespace(name=name, major=major, minor=minor)
        monkeypatch.setattr(gpus, "find_driver", lambda: H100)
        monkeypatch.setattr(torch, "ones", planted_ones)
        for attribute, value in {
            "is_available": True,
            "device_count": 1,
            "get_device_properties": properties,
            "get_device_name": name,
            "mem_get_info": (free * 2**30, 24 * 2**30),
        }.items():
            monkeypatch.setattr(torch.cuda, attribute, lambda *_, value=value: value)

    return plant


def test_the_driver_by_nvidia_smi(program, module_version):
    program("nvidia-smi", "echo '570.86.15, NVIDIA H100'; echo '570.86.15, NVIDIA H100'")
    assert find_driver() == H100
    assert str(H100) == "NVIDIA driver 570.86.15 with NVIDIA H100, NVIDIA H100"


@pytest.mark.parametrize("opened", [("", ""), ("Open Kernel Module for ", " for x86_64")])
def test_the_driver_by_its_kernel_module(program, module_version, opened):
    program("nvidia-smi", "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    module_version.write_text(MODULE.format(*opened))
    assert find_driver() == Driver("550.54.14", ())


def test_no_driver(program, module_version):
    assert find_driver() is None
    module_version.write_text("something else\n")
    assert find_driver() is None


@pytest.mark.parametrize("cuda", [None, "12.8"])
def test_no_gpu_is_a_warning(machine, cuda):
    machine(None, cuda, "Found no NVIDIA driver on your system")
    (finding,) = gpus.gpus()
    assert (finding.status, finding.detail) == ("warning", "no NVIDIA GPU or driver: everything runs on the CPU")


@pytest.mark.parametrize(
    "driver, cuda, error, detail, remedy",
    [
        (H100, None, None, "is a build for the CPU", "pip install --force-reinstall torch"),
        (H100, "13.0", None, "570.86.15 with NVIDIA H100, NVIDIA H100 is too old", "update the driver to 580 or newer"),
        (Driver("470.1", ()), "12.8", None, "NVIDIA driver 470.1 is too old", "update the driver to 525 or newer"),
        (H100, "12.8", "No CUDA GPUs\nare available", "cannot use it: No CUDA GPUs are", "check CUDA_VISIBLE_DEVICES"),
        (H100, "99.0", None, "cannot use it: it finds no GPU", "restart the machine"),
    ],
)
def test_a_gpu_that_torch_cannot_use_fails(machine, driver, cuda, error, detail, remedy):
    machine(driver, cuda, error)
    (finding,) = gpus.gpus()
    assert finding.status == "failed"
    assert detail in finding.detail
    assert remedy in finding.remedy


@pytest.mark.parametrize(
    "planted, status, detail, remedy",
    [
        ({}, "ok", "NVIDIA L4, capability 8.9, 24.0 GiB, 20.0 GiB free", ""),
        ({"major": 7, "minor": 5}, "warning", "no bfloat16", "use float16 or float32"),
        ({"free": 1}, "warning", "1.0 GiB free", "end other programs on this GPU"),
        ({"result": 2.0}, "failed", "1 + 1 + 1 gave 2.0", "reinstall driver and torch"),
        ({"error": "CUDA error: no kernel image is available"}, "failed", "no kernel image", "built for this GPU"),
        ({"error": "CUDA error: unknown"}, "failed", "CUDA error: unknown", "restart the machine"),
    ],
)
def test_devices(device, planted, status, detail, remedy):
    device(**planted)
    driver, finding = gpus.gpus()
    assert (driver.status, driver.detail.startswith("NVIDIA driver 570.86.15")) == ("ok", True)
    assert (finding.name, finding.status) == ("GPU 0", status)
    assert detail in finding.detail
    assert remedy in finding.remedy


def test_launch_configurations(device, monkeypatch, tmp_path):
    device(name="NVIDIA L4")
    monkeypatch.setattr(launch, "CONFIG_FOLDER", tmp_path)
    (finding,) = gpus.launch_configurations()
    assert (finding.status, finding.remedy) == ("warning", "run make tune in a checkout")
    (tmp_path / "nvidia-l4.json").write_text("{}")
    (finding,) = gpus.launch_configurations()
    assert finding.status == "ok"
    assert "nvidia-l4.json" in finding.detail


def test_the_compiler_of_this_machine():
    (finding,) = gpus.compiler()
    assert (finding.status, finding.name) == ("ok", "C compiler")


@pytest.mark.parametrize("has_gpu, status", [(True, "failed"), (False, "warning")])
@pytest.mark.parametrize(
    "script, detail, remedy",
    [
        (None, "there is no gcc and no clang", "apt install gcc"),
        ("echo 'x.c:1:10: fatal error: Python.h: No such file' >&2; exit 1", "code 1: x.c", "apt install python3-dev"),
        ("exit 4", "code 4: it said nothing", "apt install --reinstall gcc libc6-dev"),
    ],
)
def test_compilers_that_do_not_work(program, monkeypatch, script, detail, remedy, has_gpu, status):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    if script:
        program("gcc", script)
    (finding,) = gpus.compiler()
    assert finding.status == status
    assert detail in finding.detail
    assert finding.remedy.startswith(remedy)


def test_a_compiler_that_the_user_chose(program, monkeypatch):
    if not hasattr(sys.modules["triton"], "knobs"):
        pytest.skip("Triton before 3.4 does not say which compiler was chosen")
    program("gcc", "exit 0")
    monkeypatch.setenv("CC", program("mine", "exit 3"))
    (finding,) = gpus.compiler()
    assert (finding.detail.split("/")[-1], finding.remedy) == ("mine ended with code 3: it said nothing", "unset CC")


def test_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    (finding,) = gpus.kernel_cache()
    assert (finding.status, finding.detail) == ("ok", f"{tmp_path / 'cache'} can be written")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("has_gpu, status", [(True, "failed"), (False, "warning")])
def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path, has_gpu, status):
    (tmp_path / "file").touch()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    (finding,) = gpus.kernel_cache()
    assert finding.status == status
    assert finding.remedy.startswith("set TRITON_CACHE_DIR to a folder")


def test_a_cache_without_execution(monkeypatch, tmp_path):
    def refuse(*args, **options):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(mmap, "mmap", refuse)
    (finding,) = gpus.kernel_cache()
    assert "does not allow execution: Operation not permitted" in finding.detail
    assert "allows execution" in finding.remedy


@pytest.mark.gpu
def test_this_machines_gpus():
    findings = gpus.gpus() + gpus.compiler() + gpus.kernel_cache()
    assert [finding for finding in findings if finding.status == "failed"] == []
    assert findings[1].detail.startswith(torch.cuda.get_device_name(0))
