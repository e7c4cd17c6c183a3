"""The self-tests pass for sound operations and find every planted fault; what runs, and why."""

import re

import pytest
import torch

from fastglow.diagnosis import catalogue, isolation
from fastglow.diagnosis.comparison import Error
from fastglow.diagnosis.findings import remedy_for
from fastglow.diagnosis.isolation import run
from fastglow.diagnosis.operations import OPERATIONS, Call
from fastglow.diagnosis.self_test import CAPS, MULTIPLES, Mode, run_case, self_test, what_runs
from fastglow.errors import FastglowError
from fastglow.kernels import backend

from .faulty_operations import faulty_lstm_cell
from .planted import check, fine
from .test_operations import CASES

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch):
    monkeypatch.delenv(backend.VARIABLE, raising=False)


@WITHOUT_GPU
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("operation", ["affine_coupling", "lstm_cell", "prenet", "weight_norm"])
def test_sound_kernels_pass_in_the_interpreter(operation, dtype):
    (finding,) = self_test(operation, dtype)
    assert (finding.name, finding.status) == (f"{operation}, {dtype}", "ok")
    assert re.fullmatch(r"Triton kernels: forward [\d.]+, backward [\d.]+ times PyTorch's error", finding.detail)


@WITHOUT_GPU
def test_a_dtype_that_does_not_run_here_is_left_out():
    assert self_test("lstm_cell", "bfloat16") == []


@pytest.mark.parametrize("operation", OPERATIONS)
def test_sound_references_pass(operation, monkeypatch):
    monkeypatch.setenv(backend.VARIABLE, "reference")
    before = backend.launches.total()
    (finding,) = self_test(operation, "float32")
    assert finding.status == "ok", finding
    assert finding.detail.startswith("PyTorch reference: forward ")
    assert backend.launches.total() == before
    assert self_test(operation, "float16") == []


@WITHOUT_GPU
@pytest.mark.parametrize(
    "fault, message",
    [
        ("off by 1 in 1000", "case, forward: error .* more than 2 times PyTorch's"),
        ("one element", "more than 2 times PyTorch's"),
        ("not finite", "forward: not finite"),
        ("another shape", r"shape \[3, 9\] instead of \[3, 10\]"),
        ("gradient off by 1 in 100", "backward: error .* more than 3 times PyTorch's"),
    ],
)
def test_wrong_results_are_found(fault, message):
    (finding,) = faulty_lstm_cell(fault)
    assert (finding.name, finding.status) == ("lstm_cell, float32", "failed")
    assert re.search(message, finding.detail), finding.detail
    assert finding.remedy == "set FASTGLOW_BACKEND=reference, and open an issue with this output"


@WITHOUT_GPU
def test_a_kernel_that_raises_or_crashes_fails_and_the_next_check_runs():
    checks = [check(faulty_lstm_cell, fault) for fault in ("raises", "crashes")]
    raised, crashed, after = (found[0] for _, found in run([*checks, check(fine)]))
    assert [finding.status for finding in (raised, crashed, after)] == ["failed", "failed", "ok"]
    assert "RuntimeError: CUDA error: an illegal memory access" in raised.detail
    assert crashed.detail.startswith("its process was ended by SIGSEGV")


@WITHOUT_GPU
def test_a_kernel_that_hangs_fails_and_the_next_check_runs(monkeypatch):
    monkeypatch.setattr(isolation, "START_SECONDS", 0.0)
    hung, after = (found[0] for _, found in run([check(faulty_lstm_cell, "hangs", seconds=5.0), check(fine)]))
    assert (hung.status, hung.detail) == ("failed", "its process did not end within 5 seconds")
    assert after.status == "ok"


def run_on_triton(monkeypatch, function):
    """The self-test of an operation that is `function` instead of gated_activation, where kernels should run."""

    def case(draw):
        return Call(function, {"a": draw.constant(3, 6, 5)})

    mode = Mode(True, torch.device("cpu"), (torch.float32,), "planted")
    monkeypatch.setattr(Mode, "here", lambda: mode)
    monkeypatch.setitem(OPERATIONS, "gated_activation", (case,))
    (finding,) = self_test("gated_activation", "float32")
    return finding


def test_a_call_that_falls_back_to_the_reference_is_skipped_with_the_reason(monkeypatch):
    monkeypatch.setattr(backend, "logged", set())

    def falls_back(a):
        backend.logged.add(("gated_activation", "a good reason"))
        backend.logged.add(("another", "another reason"))
        return a

    finding = run_on_triton(monkeypatch, falls_back)
    assert finding.status == "skipped"
    assert finding.detail == "case runs on the PyTorch reference: a good reason"


def test_a_call_that_launches_no_kernel_for_no_reason_fails(monkeypatch):
    monkeypatch.setattr(backend, "logged", set())
    finding = run_on_triton(monkeypatch, lambda a: a)
    assert (finding.status, finding.detail) == ("failed", "case launched no kernel, for no known reason")


def test_wrong_integers_are_found(monkeypatch):
    def counts(a):
        backend.launches["gated_activation"] += 1
        return a, torch.tensor(int(backend.backend_name() == "reference"))

    assert "other integers than the reference" in run_on_triton(monkeypatch, counts).detail


def test_an_error_as_large_as_pytorchs_own_is_still_bounded(monkeypatch):
    def cancels(a):
        """a, but rounded as a number near 100,000."""
        backend.launches["gated_activation"] += 1
        return (a + 1e5) - 1e5

    assert "is too large, as is PyTorch's" in run_on_triton(monkeypatch, cancels).detail


@pytest.mark.parametrize("dtype", backend.KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize("operation, case", CASES)
def test_the_caps_refuse_nothing_that_is_within_the_multiples(operation, case, dtype):
    mode = Mode(False, torch.device("cpu"), (dtype,), "")
    _, references, exact = run_case(case, dtype, mode)
    for i, multiple in enumerate(MULTIPLES):
        for pytorchs, truth in zip(references[i], exact[i], strict=True):
            if truth.is_floating_point():
                error = Error.of(pytorchs[0], pytorchs, truth)
                assert multiple * error.pytorchs <= CAPS[pytorchs.dtype][i] * error.largest


@WITHOUT_GPU
@pytest.mark.parametrize(
    "variable, interprets, what, reason",
    [
        (None, False, "PyTorch reference", "the kernels are for GPUs; cpu tensors need TRITON_INTERPRET=1"),
        ("auto", False, "PyTorch reference", "the kernels are for GPUs"),
        (None, True, "Triton kernels", "outside the self-tests the references run"),
        ("triton", True, "Triton kernels", "thousands of times slower"),
        ("reference", True, "PyTorch reference", "FASTGLOW_BACKEND=reference"),
        ("reference", False, "PyTorch reference", "FASTGLOW_BACKEND=reference"),
    ],
)
def test_what_runs_without_a_gpu_and_why(monkeypatch, variable, interprets, what, reason):
    if variable:
        monkeypatch.setenv(backend.VARIABLE, variable)
    monkeypatch.setattr(backend, "interprets", lambda: interprets)
    (finding,) = what_runs()
    assert finding.status == "ok"
    assert finding.detail.startswith(f"{what} on cpu in float32")
    assert reason in finding.detail
    assert ("outside the self-tests" in finding.detail) == (what == "Triton kernels" and variable != "triton")


@WITHOUT_GPU
@pytest.mark.parametrize("variable", ["cuda", "triton"])
def test_a_backend_that_cannot_serve_is_refused_once(monkeypatch, variable):
    monkeypatch.setenv(backend.VARIABLE, variable)
    monkeypatch.setattr(backend, "interprets", lambda: False)
    with pytest.raises(FastglowError, match="FASTGLOW_BACKEND") as error:
        what_runs()
    assert remedy_for(str(error.value)) == "unset FASTGLOW_BACKEND"
    (finding,) = self_test("lstm_cell", "float32")
    assert finding.status == "skipped"


@pytest.mark.gpu
def test_what_runs_on_a_gpu():
    (finding,) = what_runs()
    assert finding.status == "ok"
    assert finding.detail.startswith("Triton kernels on cuda in float32, float16, bfloat16")


@pytest.mark.gpu
def test_every_self_test_passes_on_the_gpu():
    results = [finding for _, found in run(catalogue.self_tests()) for finding in found]
    assert len(results) == len(OPERATIONS) * len(backend.KERNEL_DTYPES)
    assert [finding for finding in results if finding.status != "ok"] == []


@pytest.mark.gpu
def test_forcing_the_reference_on_a_gpu_is_a_warning(monkeypatch):
    monkeypatch.setenv(backend.VARIABLE, "reference")
    (finding,) = what_runs()
    assert (finding.status, finding.remedy) == ("warning", "unset FASTGLOW_BACKEND to use the kernels")
