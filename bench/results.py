"""pytest-benchmark's JSON of a run, read for the gate and the report."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastglow.errors import FastglowError
from fastglow.kernels.launch import gpu_slug

from . import journal
from .workload import EAGER, FASTGLOW, ORDINARY, PEER


@dataclass(frozen=True)
class Row:
    """One benchmark.

    Attributes:
        name: 'op/case/direction', the same for all implementations.
        implementation: what was timed.
        seconds: median.
        test: pytest's name, to run it again.
        info: its extra_info.
    """

    name: str
    implementation: str
    seconds: float
    test: str
    info: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """
    Attributes:
        machine: gpu (or None), torch, triton, commit, ceilings; of a CPU also processor, capability, threads.
        rows: all benchmarks; those of a CPU that were timed in turn have one each.
    """

    machine: dict[str, Any]
    rows: list[Row]

    def by_name(self) -> dict[str, dict[str, Row]]:
        """Rows by name, then by implementation."""
        table: dict[str, dict[str, Row]] = {}
        for row in self.rows:
            table.setdefault(row.name, {})[row.implementation] = row
        return table

    def ratios(self) -> dict[str, float]:
        """fastglow's time over the eager reference's in the same run, by name, where both were timed; without other
        people's models, which not every machine has installed."""
        return {
            name: rows[FASTGLOW].seconds / rows[EAGER].seconds
            for name, rows in self.by_name().items()
            if FASTGLOW in rows and EAGER in rows and "swapped" not in rows[FASTGLOW].info
        }


def load(paths: Sequence[Path]) -> Run:
    """One run from pytest-benchmark's JSON files or journals; a benchmark's last result counts.

    Raises:
        FastglowError: a file the suite did not write, or files from different machines or versions.
    """
    machines: list[dict[str, Any]] = []
    rows: list[Row] = []
    sources: list[Path] = []
    for path in paths:
        try:
            found, benchmarks = _journal(path) if path.suffix == ".jsonl" else _json(path)
            machines += found
            sources += [path] * len(found)
            rows += [row for benchmark in benchmarks for row in _rows(benchmark)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FastglowError(f"{path} is not a benchmark result ({error!r}): make one with `make bench`") from error
    if not machines:
        raise FastglowError("no results given: make them with `make bench`")
    for path, machine in zip(sources, machines, strict=True):
        for key in ("gpu", "torch", "triton", "commit"):
            if machine[key] != machines[0][key]:
                raise FastglowError(f"{path} is from {key} {machine[key]}, {sources[0]} from {machines[0][key]}")
    return Run(machines[0], rows)


def _json(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(machines, benchmarks) of pytest-benchmark's file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return [content["machine_info"]["fastglow"]], content["benchmarks"]


def _journal(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The same of a journal."""
    last = {record["test"]: record["benchmark"] for record in journal.read(path) if "benchmark" in record}
    return [benchmark["machine"] for benchmark in last.values()], list(last.values())


def any_benchmark(paths: Sequence[Path]) -> bool:
    return any(path.suffix != ".jsonl" or _journal(path)[1] for path in paths)


def baseline_path(folder: Path, gpu: str) -> Path:
    return folder / f"{gpu_slug(gpu)}.json"


def times_as_fast(ours: Row, other: Row) -> list[float]:
    """The other's time over ours: in each round if they were timed in turn, else of the medians."""
    in_turn = ours.info.get("ratios", {}).get(other.implementation, {}).get(other.info["dtype"])
    return in_turn or [other.seconds / ours.seconds]


def speedup(ours: Row, other: Row) -> float:
    return statistics.median(times_as_fast(ours, other))


def compared(rows: Mapping[str, Row]) -> dict[str, float]:
    """Of a benchmark: activations_of_peer, our memory of activations over NVIDIA's; times_ordinary, our time over that
    without what it varies."""
    ours, found = rows[FASTGLOW], {}
    if PEER in rows and ours.info.get("activation_bytes") is not None and rows[PEER].info.get("activation_bytes"):
        found["activations_of_peer"] = ours.info["activation_bytes"] / rows[PEER].info["activation_bytes"]
    if ORDINARY in rows:
        found["times_ordinary"] = statistics.median(1 / ratio for ratio in times_as_fast(ours, rows[ORDINARY]))
    return found


def _rows(benchmark: dict[str, Any]) -> list[Row]:
    info, test = benchmark["extra_info"], benchmark["fullname"]
    return [
        _row(info, benchmark["stats"]["median"], test),
        *(_row(other, other["median"], test) for other in info.get("in_turn", [])),
    ]


def _row(info: dict[str, Any], seconds: float, test: str) -> Row:
    name = "/".join(info[key] for key in ("op", "case", "direction"))
    return Row(name, info["implementation"], seconds, test, info)
