"""Checks of the machine, on this one and with planted faults."""

import os
import tempfile

import pytest
import torch

from fastglow.diagnosis import machine
from fastglow.diagnosis.machine import Processor

X86 = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu {}\n\nmodel name\t: other\nflags\t: \n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd sve bf16\nCPU part\t: 0xd40\n"


@pytest.fixture
def planted_file(monkeypatch, tmp_path):
    """`planted_file(text)`: what the checks read instead of any file in /proc."""

    def plant(text: str) -> None:
        (tmp_path / "file").write_text(text)
        monkeypatch.setattr(machine, "Path", lambda name: tmp_path / "file")

    return plant


def test_x86():
    found = Processor.of(X86.format("avx avx2 avx512f avx512_bf16 amx_bf16"))
    assert found == ("Some CPU @ 2 GHz", ("AVX2", "AVX-512", "AVX-512 bfloat16", "AMX bfloat16"))


def test_arm():
    assert Processor.of(ARM) == (machine.platform.machine(), ("NEON", "SVE", "bfloat16"))


def test_unknown_format():
    assert Processor.of("") == (machine.platform.machine(), ())


def test_this_machine():
    findings = machine.system() + machine.processor() + machine.memory() + machine.temporary_folder()
    assert [finding.name for finding in findings] == ["system", "processor", "memory", "temporary folder"]
    assert machine.platform.python_version() in findings[0].detail
    assert f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores" in findings[1].detail


@pytest.mark.parametrize("flags, status", [("avx", "warning"), ("avx avx2", "ok")])
def test_a_processor_without_avx2_is_a_warning(planted_file, monkeypatch, flags, status):
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    planted_file(X86.format(flags))
    (finding,) = machine.processor()
    assert (finding.status, bool(finding.remedy)) == (status, status == "warning")


@pytest.mark.parametrize("available, status", [(1048575, "warning"), (1048576, "ok")])
def test_little_memory_is_a_warning(planted_file, available, status):
    planted_file(f"MemTotal:  8388608 kB\nMemFree: 1 kB\nMemAvailable: {available} kB\n")
    (finding,) = machine.memory()
    assert finding.status == status
    assert finding.detail.startswith("8.0 GiB, 1.0 GiB available")


@pytest.mark.parametrize("n, cores, status", [(1, 2, "ok"), (2, 2, "ok"), (3, 2, "warning")])
def test_more_threads_than_cores_are_a_warning(monkeypatch, n, cores, status):
    monkeypatch.setattr(torch, "get_num_threads", lambda: n)
    monkeypatch.setattr(machine, "usable_cores", lambda: cores)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    (finding,) = machine.threads()
    assert finding.status == status
    assert "they wait as OMP_WAIT_POLICY=active says" in finding.detail
    assert f"{n} threads" in finding.detail


def test_a_temporary_folder_that_cannot_be_written_fails(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    (finding,) = machine.temporary_folder()
    assert (finding.status, "TMPDIR" in finding.remedy) == ("failed", True)
    assert "missing" in finding.detail
