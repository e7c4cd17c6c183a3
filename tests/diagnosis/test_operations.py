"""The table of calls covers every operation, every public function and every dtype that the kernels take."""

import inspect
import subprocess
import sys

import pytest
import torch

import fastglow
from fastglow.diagnosis import catalogue
from fastglow.diagnosis.operations import OPERATIONS
from fastglow.diagnosis.self_test import _RandomTensors
from fastglow.kernels import backend
from tests.kernels.test_stems import ON_TRITON

HELPERS = {"fold_decoder", "normal_noise", "pack_decoder", "uniform_noise"}
"""Public functions without kernels."""

CASES = [pytest.param(name, case, id=case.__name__.lstrip("_")) for name, cases in OPERATIONS.items() for case in cases]


def test_every_operation_with_kernels_is_in_the_table():
    assert set(OPERATIONS) == ON_TRITON


def test_every_public_function_is_called():
    public = {n for n in fastglow.kernels.__all__ if inspect.isfunction(getattr(fastglow.kernels, n))} - HELPERS
    called = {case(_RandomTensors(torch.float32)).function for cases in OPERATIONS.values() for case in cases}
    assert {function.__name__ for function in called} == public


def test_every_dtype_of_the_kernels_is_tested():
    assert [getattr(torch, name) for name in catalogue.DTYPES] == list(backend.KERNEL_DTYPES)
    assert len(catalogue.self_tests()) == len(OPERATIONS) * len(backend.KERNEL_DTYPES)


def test_the_catalogue_is_read_without_torch():
    code = (
        "import sys; from fastglow.commands import doctor; doctor.catalogue.self_tests(); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("operation, case", CASES)
def test_values_are_the_same_for_every_dtype_apart_from_rounding(operation, case):
    exact, half = (case(_RandomTensors(dtype)).arguments for dtype in (torch.float64, torch.float16))
    leaves = [torch.utils._pytree.tree_leaves(arguments) for arguments in (exact, half)]
    compared = [(x, y) for x, y in zip(*leaves, strict=True) if isinstance(x, torch.Tensor)]
    assert compared
    for x, y in compared:
        torch.testing.assert_close(y.double(), x.double(), rtol=1e-3, atol=1e-3)
