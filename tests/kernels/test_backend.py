"""Choice of the backend, and its messages."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastglow.errors import FastglowError
from fastglow.kernels import backend, gated_activation

from .checks import launch_counter

ROOT = Path(__file__).parents[2]


def test_cpu_tensors_take_the_reference_unless_forced(monkeypatch):
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    assert backend.backend_name() == "auto"
    assert not backend.picks_triton("op", torch.zeros(1))
    with backend.use_backend("reference"):
        assert not backend.picks_triton("op", torch.zeros(1))


@pytest.mark.parametrize("name", ["triton", "reference", "auto"])
def test_the_environment_variable_forces_a_backend_and_code_overrides_it(monkeypatch, name):
    monkeypatch.setenv(backend.VARIABLE, name)
    assert backend.backend_name() == name
    with backend.use_backend("reference"):
        assert backend.backend_name() == "reference"
        with backend.use_backend("triton"):
            assert backend.backend_name() == "triton"
        assert backend.backend_name() == "reference"
    assert backend.backend_name() == name


def test_unknown_names(monkeypatch):
    with pytest.raises(FastglowError, match="backend='cuda' must be auto, triton or reference"):
        with backend.use_backend("cuda"):
            pass
    monkeypatch.setenv(backend.VARIABLE, "cuda")
    with pytest.raises(FastglowError, match="FASTGLOW_BACKEND='cuda' must be auto, triton or reference"):
        backend.picks_triton("op", torch.zeros(1))


@pytest.mark.parametrize(
    "tensors, unsupported, message",
    [
        ((torch.zeros(1, dtype=torch.float64),), None, "float64 is not among float32, float16 and bfloat16"),
        ((torch.zeros(1), torch.zeros(1, device="meta")), None, "its tensors are on cpu, meta"),
        ((torch.zeros(1), None), "too many channels", "too many channels"),
    ],
)
def test_a_forced_backend_that_cannot_serve_says_why(tensors, unsupported, message):
    with backend.use_backend("triton"), pytest.raises(FastglowError, match=f"op: .*{message}"):
        backend.picks_triton("op", *tensors, unsupported=unsupported)


@pytest.mark.gpu
def test_an_automatic_fallback_says_why_once(caplog):
    tensor = torch.zeros(1, device="cuda")
    with caplog.at_level(logging.WARNING, logger="fastglow"), backend.use_backend("auto"):
        for _ in range(3):
            assert not backend.picks_triton("some_op", tensor, unsupported="a reason")
    assert [record.getMessage() for record in caplog.records] == ["some_op runs on the PyTorch reference: a reason"]


def test_launches_are_counted(device):
    launches = launch_counter("gated_activation")
    gated_activation(torch.randn(1, 4, 3, device="cpu"))
    assert launches() == 0
    with backend.use_backend("triton"):
        gated_activation(torch.randn(1, 4, 3, device=device))
    assert launches() == 1


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", backend.VARIABLE)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=inherited | environment, capture_output=True, text=True
    )


CALL = """
import torch
from fastglow.kernels import backend, gated_activation
try:
    gated_activation(torch.randn(1, 4, 3))
    print(backend.launches.total())
except ValueError as error:
    print(error)
"""


def test_the_variable_in_a_process_of_its_own():
    assert run(CALL).stdout == "0\n"
    assert run(CALL, FASTGLOW_BACKEND="triton", TRITON_INTERPRET="1").stdout == "1\n"
    refused = run(CALL, FASTGLOW_BACKEND="triton").stdout
    assert "cpu tensors need TRITON_INTERPRET=1, set before fastglow is imported" in refused
    assert refused.count("\n") == 1


def test_autocast_dtype():
    assert backend.autocast_dtype(torch.zeros(1)) is None
    assert backend.autocast_dtype(torch.zeros(1, device="meta")) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert backend.autocast_dtype(torch.zeros(1)) == torch.bfloat16
