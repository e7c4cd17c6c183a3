"""Files and parameter lists stay short."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"fastglow": 400, "kernels": 400, "train": 400, "bench": 400, "voices": 400, "examples": 100, "tests": 450}
MAX_PARAMETERS = 14

# Path.rglob does not follow the links fastglow/kernels and fastglow/train.
FILES = [(path, lines) for folder, lines in FOLDERS.items() for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_are_short(folder):
    files = [(path, limit) for path, limit in FILES if path.is_relative_to(ROOT / folder)]
    assert files
    long = {str(path): n for path, limit in files if (n := len(path.read_text().splitlines())) > limit}
    assert not long


def test_parameter_lists_are_short():
    counts = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": len(
            node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        )
        for path, _ in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(counts) > 1000
    assert {name: n for name, n in counts.items() if n > MAX_PARAMETERS} == {}
