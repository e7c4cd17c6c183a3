"""A run's journal: each test and benchmark is on disk as soon as it has finished.

One JSON object a line, appended in one write and synced, so that a process killed at any moment loses only the item it
was at. `pytest -p bench.journal --journal FILE` writes it, and leaves out the items that passed before.
"""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from . import environment
from .records import append, read

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


def outcomes(records: list[dict[str, Any]]) -> dict[str, str]:
    """Each test's last outcome."""
    return {record["test"]: record["outcome"] for record in records if "test" in record}


def errors(records: list[dict[str, Any]]) -> dict[str, str]:
    """The error, in one line, of each test whose last outcome is a failure."""
    failed = [test for test, outcome in outcomes(records).items() if outcome == FAILED]
    messages = {record["test"]: record.get("message", "") for record in records if "test" in record}
    return {test: _error_in(messages[test]) for test in failed}


def reasons(records: list[dict[str, Any]]) -> Counter[str]:
    """Why tests were skipped that did not run later, and how many for each reason."""
    messages = {record["test"]: record.get("message", "") for record in records if "test" in record}
    skipped = [test for test, outcome in outcomes(records).items() if outcome == SKIPPED]
    return Counter(messages[test] for test in skipped if messages[test])


def _error_in(message: str) -> str:
    """The first of a trace, which the others follow from: pytest marks its lines with an E."""
    lines = message.splitlines() or [""]
    first = next((line for line in lines if line.startswith("E ")), lines[-1])
    return " ".join(first.removeprefix("E ").split())[:200]


def pytest_addoption(parser):
    parser.addoption("--journal", type=Path, metavar="FILE", help="Append each finished item; leave out what passed.")


def pytest_collection_modifyitems(config, items):
    if path := config.getoption("journal"):
        known = outcomes(read(path))
        done = [item for item in items if known.get(item.nodeid) == PASSED]
        config.hook.pytest_deselected(items=done)
        items[:] = [item for item in items if known.get(item.nodeid) != PASSED]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    path = item.config.getoption("journal")
    finished = report.when == "call" or (report.when == "setup" and not report.passed)
    late = report.when == "teardown" and report.failed
    if path and (finished or late):
        record = {"test": item.nodeid, "outcome": report.outcome, "seconds": round(call.duration, 3)}
        if report.failed:
            record["message"] = report.longreprtext[-4000:]
        elif report.skipped and isinstance(report.longrepr, tuple):
            record["message"] = report.longrepr[2].removeprefix("Skipped: ")
        elif report.passed and (benchmark := _measured(item)):
            record["benchmark"] = benchmark
        append(path, record)
    return report


def _measured(item: pytest.Item) -> dict[str, Any] | None:
    """A timed benchmark as pytest-benchmark writes it, with the machine."""
    benchmark, measure = (getattr(item, "funcargs", {}).get(name) for name in ("benchmark", "measure"))
    if measure is None or benchmark is None or benchmark.stats is None or measure.ceilings is None:
        return None
    info = dict(benchmark.extra_info)
    machine = {key: info[key] for key in environment.describe()}
    return {
        "fullname": benchmark.fullname,
        "stats": {"median": benchmark.stats.stats.median},
        "extra_info": info,
        "machine": {**machine, "ceilings": asdict(measure.ceilings)},
    }
