"""One stem per operation, everywhere."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_operation_has_its_tests_and_a_line_in_the_readme():
    operations = {
        path.stem for folder in ("kernels", "kernels/reference") for path in (ROOT / folder).glob("[a-z]*.py")
    }
    assert "lstm_cell" in operations
    assert operations == {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")} - {
        "stems"
    }
    readme = (ROOT / "kernels" / "README.md").read_text()
    assert [operation for operation in operations if f"`{operation}`" not in readme] == []
