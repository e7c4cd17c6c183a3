"""One stem per operation, everywhere."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

INFRASTRUCTURE = {
    "arguments",
    "backend",
    "decoder_weights",
    "graphs",
    "launch",
    "philox",
}  # of `kernels/`: what the operations share

OPERATIONS = {
    path.stem for folder in ("kernels", "kernels/reference") for path in (ROOT / folder).glob("[a-z]*.py")
} - INFRASTRUCTURE

ON_TRITON = {
    path.stem for path in (ROOT / "kernels").glob("[a-z]*.py") if "@triton.jit" in path.read_text()
} - INFRASTRUCTURE


def test_there_are_operations():
    assert {"lstm_cell", "gated_activation", "wavenet_layer"} <= OPERATIONS
    assert {"gated_activation", "wavenet_layer"} <= ON_TRITON <= OPERATIONS


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_every_operation_has_its_tests_and_a_line_in_the_readme(operation):
    assert (Path(__file__).parent / f"test_{operation}.py").exists()
    assert f"`{operation}`" in (ROOT / "kernels" / "README.md").read_text()


@pytest.mark.parametrize("operation", sorted(ON_TRITON))
def test_every_kernel_has_its_reference_its_benchmark_and_its_section(operation):
    assert (ROOT / "kernels" / "reference" / f"{operation}.py").exists()
    assert (ROOT / "bench" / f"test_bench_{operation}.py").exists()
    assert f"## {operation}" in (ROOT / "kernels" / "README.md").read_text().splitlines()
