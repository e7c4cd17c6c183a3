"""The journal of a run survives a kill at any moment, and a second run goes on from it."""

import os
import signal
import subprocess
import sys

import pytest

from bench import environment, journal, report, results

TESTS = """
import os, signal, pytest

@pytest.mark.parametrize("i", range(5))
def test_number(i, record_property):
    if i == int(os.environ.get("KILLED_AT", -1)):
        os.kill(os.getpid(), signal.SIGKILL)
    assert i != int(os.environ.get("FAILS_AT", -1))
    with open(os.environ["RAN"], "a") as file:
        file.write(f"{i}")
"""


@pytest.fixture
def run(tmp_path):
    """`run(KILLED_AT=2)`: (exit code, the numbers that ran to their end in this run)."""
    (tmp_path / "test_numbers.py").write_text(TESTS)

    def pytest_with(**variables: int):
        ran = tmp_path / "ran"
        ran.write_text("")
        options = ["-p", "bench.journal", f"--journal={tmp_path / 'journal.jsonl'}", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--rootdir", str(tmp_path), "-c", os.devnull, *options, "."],
            cwd=tmp_path,
            env=os.environ
            | {name: str(value) for name, value in variables.items()}
            | {"RAN": str(ran), "PYTHONPATH": str(environment.ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True,
        )
        return done.returncode, ran.read_text()

    return pytest_with


@pytest.mark.parametrize("killed_at", [0, 3])
def test_a_killed_run_loses_only_the_test_it_was_at(run, tmp_path, killed_at):
    assert run(KILLED_AT=killed_at) == (-signal.SIGKILL, "01234"[:killed_at])
    assert len(journal.outcomes(journal.read(tmp_path / "journal.jsonl"))) == killed_at
    assert run() == (0, "01234"[killed_at:])
    assert run() == (5, "")


def test_failed_tests_are_run_again(run, tmp_path):
    assert run(FAILS_AT=1) == (1, "0234")
    (failed,) = (r for r in journal.read(tmp_path / "journal.jsonl") if r["outcome"] == journal.FAILED)
    assert "assert 1 != 1" in failed["message"]
    assert run() == (0, "1")


def test_every_cut_of_the_file_is_read_and_continued(tmp_path):
    """A process may die, or a disk be full, in the middle of a line."""
    records = [{"test": f"t{i}", "outcome": "passed"} for i in range(3)]
    path = tmp_path / "journal.jsonl"
    for record in records:
        journal.append(path, record)
    content = path.read_bytes()
    for n in range(len(content) + 1):
        path.write_bytes(content[:n])
        whole = [record for i, record in enumerate(records) if n >= len(b"\n".join(content.split(b"\n")[: i + 1]))]
        assert journal.read(path) == whole
        journal.append(path, {"test": "new"})
        assert journal.read(path) == [*whole, {"test": "new"}]


def test_a_timed_benchmark_is_in_the_journal_and_in_the_report(tmp_path):
    path = tmp_path / "journal.jsonl"
    options = ["-p", "bench.journal", f"--journal={path}", "-q", "-p", "no:cacheprovider"]
    options += ["--small", "-k", "forward", "--benchmark-max-time=0.01"]
    command = [sys.executable, "-m", "pytest", "bench/test_bench_prenet.py", *options]
    subprocess.run(command, cwd=environment.ROOT, check=True, stdout=subprocess.DEVNULL)
    run = results.load([path])
    assert run.machine["ceilings"]["bytes_per_second"] > 0
    assert {implementation for rows in run.by_name().values() for implementation in rows} == {"fastglow", "eager"}
    assert all(row.seconds > 0 and row.info["op"] == "prenet" for row in run.rows)
    assert all(f"| {name} |" in report.markdown(run) for name in run.by_name())


def test_no_file_is_no_record(tmp_path):
    assert journal.read(tmp_path / "journal.jsonl") == []
