"""Every kernel gives the same bits in any order of its programs, and in any memory, and stays inside its tensors."""

from functools import cache

import pytest
import torch

from tests.ahead_of_time.reports import KERNELS, defined_kernels

from . import calls_decoder, calls_waveglow, faulty_kernels
from .bounds import OutOfBoundsError
from .calls import Case
from .faulty_kernels import call_of
from .memory import HUGE, NAN, Memory
from .order import ASCENDING, REVERSED, Executed, First, assert_equals_first, first_run, run

ONE_PROGRAM = {
    "decode_begin_kernel": "one program writes the list of items",
    "decode_loop_kernel": "its programs wait for each other, so they cannot run one after the other",
    "teacher_forced_advance_kernel": "ends a CUDA graph by adding to its clock; only a GPU launches it",
}

CASES = [
    pytest.param(case, dtype, id=f"{case.name}, {str(dtype).removeprefix('torch.')}")
    for case in (*calls_waveglow.CASES, *calls_decoder.CASES)
    for dtype in case.dtypes
]

_first = cache(lambda case, dtype: first_run(case.call(dtype)))


@pytest.mark.parametrize("case, dtype", CASES)
def test_any_order_and_any_uninitialised_memory(case: Case, dtype: torch.dtype):
    assert_equals_first(case.call(dtype), _first(case, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_every_kernel_was_executed(dtype):
    executed = Executed()
    for param in CASES:
        if param.values[1] == dtype:
            executed.add(_first(*param.values).executed)
    assert executed.missing(defined_kernels(KERNELS.rglob("*.py")) - ONE_PROGRAM.keys()) == []
    assert "decode_loop_kernel" in executed.most


def _first_of(function, spread: bool = False) -> First:
    return first_run(call_of(function, spread))


def test_the_runs_find_nothing_in_sound_kernels():
    for function in (faulty_kernels.doubled, faulty_kernels.by_table):
        assert_equals_first(call_of(function), _first_of(function))


@pytest.mark.parametrize("function", ["running_sum", "atomic_sum", "neighbour", "same_place"])
def test_an_order_that_matters_is_found(function):
    call = call_of(getattr(faulty_kernels, function))
    first = First(run(call, Memory(NAN), ASCENDING), Executed())  # without its checks, which find most of these too
    assert_equals_first(call, first, [(ASCENDING, HUGE)])
    with pytest.raises(AssertionError, match="output .* changes with programs reversed, NaN in memory"):
        assert_equals_first(call, first, [(REVERSED, NAN)])


@pytest.mark.parametrize("function", ["running_sum", "neighbour", "same_place"])
def test_programs_that_touch_the_same_memory_are_found(function):
    with pytest.raises(AssertionError, match=f"{function}_kernel"):
        _first_of(getattr(faulty_kernels, function))


@pytest.mark.parametrize("function", ["unwritten", "zeros_expected"])
def test_uninitialised_results_are_found(function):
    with pytest.raises(AssertionError, match="output 0 is not finite"):
        _first_of(getattr(faulty_kernels, function))


def test_uninitialised_integers_are_found():
    call = call_of(faulty_kernels.unwritten_integers)
    with pytest.raises(AssertionError, match="output 0 changes with programs ascending, huge in memory"):
        assert_equals_first(call, first_run(call), [(ASCENDING, HUGE)])


@pytest.mark.parametrize(
    "function, spread, message",
    [
        ("reads_behind", False, r"program \(7, 0, 0\) reads 1 elements outside"),
        ("writes_before", False, r"program \(0, 0, 0\) writes 1 elements outside"),
        ("doubled", True, r"program \(1, 0, 0\) reads 1 elements outside"),  # takes a gap for an element
        ("by_table_of_freed_memory", False, r"program \(0, 0, 0\) reads 1 elements outside"),
    ],
)
def test_accesses_outside_the_tensors_are_found(function, spread, message):
    with pytest.raises(OutOfBoundsError, match=message):
        _first_of(getattr(faulty_kernels, function), spread)


def test_overwritten_inputs_are_found():
    with pytest.raises(AssertionError, match="an input of shape .* was overwritten"):
        _first_of(faulty_kernels.overwrites_its_input)


def test_kernels_that_were_not_executed_are_found():
    executed = _first_of(faulty_kernels.doubled).executed
    assert executed.missing(["double_kernel"]) == []
    assert executed.missing(["double_kernel", "other_kernel"]) == ["other_kernel was not executed"]
    executed.most["double_kernel"] = (1, 1, 1)
    assert executed.missing(["double_kernel"]) == ["double_kernel had one program along axis 0"]


ALLOCATIONS = [
    lambda: torch.empty(3),
    lambda: torch.empty(3, dtype=torch.int64),
    lambda: torch.empty(3, dtype=torch.uint8),
    lambda: torch.empty(3, dtype=torch.bool),
    lambda: torch.empty(3, dtype=torch.float16),
    lambda: torch.empty_like(torch.zeros(3)),
    lambda: torch.empty_strided((2, 3), (1, 2)),
    lambda: torch.empty_permuted((2, 3), (1, 0)),
    lambda: torch.zeros(3).new_empty(3, dtype=torch.int32),
    lambda: torch.zeros(3).new_empty_strided((2,), (2,)),
    lambda: torch.Tensor(3),
]


@pytest.mark.parametrize("allocate", ALLOCATIONS)
def test_uninitialised_memory_is_poisoned(allocate):
    found = []
    for poison in (NAN, HUGE):
        with Memory(poison):
            found.append(allocate())
    nan, huge = found
    assert not nan.is_floating_point() or bool(nan.isnan().all())
    assert not bool((nan == huge).any())
    assert not bool((huge == 0).any())
