"""Every operation has the same file name in all folders."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SHARED = {"arguments", "backend", "convolution", "decoder_weights", "graphs", "launch", "operators", "philox"}
"""Modules of `kernels/` and `kernels/reference/` that the operations share."""


def sources(folder: Path) -> dict[str, str]:
    """The source of every module in a folder, by name; all modules of a package count as one."""
    modules = {path.stem: path.read_text() for path in folder.glob("[a-z]*.py")}
    packages = {path.parent.name: path.parent for path in folder.glob("[a-z]*/__init__.py")}
    return modules | {
        name: "".join(path.read_text() for path in package.rglob("*.py")) for name, package in packages.items()
    }


IN_KERNELS = sources(ROOT / "kernels")
REFERENCES = sources(ROOT / "kernels" / "reference")
OTHER_FORMS = {"reference", "cpu"}  # of operations
OPERATIONS = (IN_KERNELS.keys() | REFERENCES.keys()) - SHARED - OTHER_FORMS
ON_TRITON = {name for name, source in IN_KERNELS.items() if "@triton.jit" in source} - SHARED


def test_there_are_operations():
    assert {"lstm_cell", "gated_activation", "wavenet_layer", "decode_loop"} <= OPERATIONS
    assert {"gated_activation", "wavenet_layer", "decode_loop"} <= ON_TRITON <= OPERATIONS


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_every_operation_has_its_tests_and_a_line_in_the_readme(operation):
    assert (Path(__file__).parent / f"test_{operation}.py").exists()
    assert f"`{operation}`" in (ROOT / "kernels" / "README.md").read_text()


@pytest.mark.parametrize("operation", sorted(ON_TRITON))
def test_every_kernel_has_its_reference_its_benchmark_and_its_section(operation):
    assert operation in REFERENCES
    assert (ROOT / "bench" / f"test_bench_{operation}.py").exists()
    assert f"## {operation}" in (ROOT / "kernels" / "README.md").read_text().splitlines()
