"""Every kernel, compiled ahead of time for every architecture with each of its launch configurations.

The first run compiles hundreds of kernels, which takes minutes; pytest's cache keeps the reports until a kernel, a
case, Triton or PyTorch changes.
"""

from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from triton.language import constexpr

from fastglow.kernels.decode_loop.kernels import HAS_CONDITION

from .reports import ARCHITECTURES, CASES, FAULTS, KERNELS, Report, compile_for, defined_kernels
from .worker import constants_of

WORKERS = 2


@pytest.fixture(scope="module")
def reports(pytestconfig) -> dict[int, dict[str, Report]]:
    folder = pytestconfig.cache.mkdir("ahead_of_time")
    with ThreadPoolExecutor(WORKERS) as pool:
        reports = pool.map(lambda arch: compile_for(arch, folder), ARCHITECTURES)
        return dict(zip(ARCHITECTURES, reports, strict=True))


@pytest.fixture(params=ARCHITECTURES, ids="sm_{}".format)
def report(request, reports) -> Report:
    return reports[request.param][CASES]


@pytest.fixture(params=ARCHITECTURES, ids="sm_{}".format)
def faults(request, reports) -> Report:
    return reports[request.param][FAULTS]


def _assert_none(found: list[str]) -> None:
    assert not found, "\n".join(found)


def test_all_kernels_compile(report):
    _assert_none(report.errors)


def test_no_kernel_spills_registers(report):
    _assert_none(report.spilled())


def test_shared_memory_is_within_the_chips_limit(report):
    _assert_none(report.oversized())


def test_products_run_on_tensor_cores_where_meant(report):
    _assert_none(report.wrong_instructions())


def test_no_kernel_computes_in_float64(report):
    _assert_none(report.in_float64())


def test_prefetched_weights_are_loaded_before_the_wait_and_used_after_it(report):
    assert any(compiled.prefetched for compiled in report.compiled) or not HAS_CONDITION
    _assert_none(report.late_loads())


def test_every_configuration_is_compiled(report):
    _assert_none(report.unused_configurations())


def test_every_kernel_is_compiled(report):
    kernels = defined_kernels(KERNELS.rglob("*.py"))
    not_compiled = set() if HAS_CONDITION else {"decode_loop_kernel"}  # Triton 3.3 and 3.4
    assert kernels - {compiled.kernel for compiled in report.compiled} == not_compiled


def test_sound_kernels_have_no_faults(faults):
    sound = {str(x) for x in faults.compiled if x.case.startswith("sound")}
    assert len(sound) == 6
    found = (
        faults.spilled() + faults.oversized() + faults.wrong_instructions() + faults.in_float64() + faults.late_loads()
    )
    assert [line for line in found for name in sound if line.startswith(name)] == []


def test_a_spill_is_found(faults):
    (line,) = faults.spilled()
    assert line.startswith("squares_kernel[float32, too many registers: BLOCK=16384, num_warps=1")


def test_too_much_shared_memory_is_found(faults):
    (line,) = faults.oversized()
    assert line.startswith("product_kernel[bfloat16, too much shared memory: ")


def test_lack_of_tensor_cores_is_found(faults):
    lacking, unasked = faults.wrong_instructions()
    assert lacking.startswith("product_kernel[tf32, no tensor cores: ")
    assert lacking.endswith("multiplies by no tensor core")
    assert unasked.startswith("product_kernel[float32, tensor cores unasked: ")
    assert "tf32" in unasked.rpartition(" multiplies by ")[2]


def test_loads_after_the_wait_and_uses_before_it_are_found(faults):
    late, early = faults.late_loads()
    assert late.startswith("waiting_kernel[float32, loads late: ")
    assert early.startswith("waiting_kernel[float32, uses early: ")
    assert " uses them in ['" in early


def test_float64_is_found(faults):
    (line,) = faults.in_float64()
    assert line.startswith("double_kernel[float32, ")


def test_ignored_and_unused_configurations_are_found(faults):
    ignored, unused = faults.unused_configurations()
    assert ignored.startswith("double_kernel[float32] was not compiled with {'BLOCK': 512, ")
    assert unused.endswith("faults.UNUSED_CONFIGS")


def test_a_case_that_fails_is_found(faults):
    (error,) = faults.errors
    assert "no code, float32" in error
    assert "ArithmeticError: a kernel that cannot be compiled" in error


def test_a_kernel_without_a_case_is_found(faults):
    kernels = defined_kernels([Path(__file__).with_name("faults.py")])
    assert kernels - {compiled.kernel for compiled in faults.compiled} == {"forgotten_kernel"}


def test_constants_are_found_in_structs():
    """What Triton 3.3 to 3.7 keep of `kernel(x, forward, backward, n, STAGES: tl.constexpr)`."""
    Blocks, Tiles = namedtuple("Blocks", "BK, tiles, n"), namedtuple("Tiles", "BT, BD, PRECISION")
    tiles = Tiles(*["constexpr"] * 3)
    parameters = {"x": False, "forward": False, "backward": False, "n": False, "STAGES": True}
    source = SimpleNamespace(
        fn=SimpleNamespace(params=[SimpleNamespace(name=x, is_constexpr=y) for x, y in parameters.items()]),
        signature={"x": "*fp32", "forward": Blocks("constexpr", tiles, "constexpr"), "backward": tiles}
        | dict.fromkeys(("n", "STAGES"), "constexpr"),
        constants={
            (1, 0): constexpr(64),
            (1, 1, 0): constexpr(32),
            (1, 1, 1): constexpr(True),
            (1, 1, 2): constexpr("tf32"),
            (1, 2): 1,
            (2, 0): constexpr(32),
            (2, 1): constexpr(False),
            (2, 2): constexpr(None),
            (3,): 1,
            (4,): 5,
        },
    )
    assert constants_of(source) == {
        "BK": 64,
        "BT": 32,
        "forward.tiles.BD": True,
        "backward.BD": False,
        "forward.tiles.PRECISION": "tf32",
        "backward.PRECISION": None,
        "STAGES": 5,
    }
