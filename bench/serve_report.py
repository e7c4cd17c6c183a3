"""The report's table of the service under load."""

import statistics
from collections.abc import Mapping

from . import results
from .results import Row, Run
from .workload import FASTGLOW, ORDINARY

BATCHING = {FASTGLOW: "on", ORDINARY: "off"}


def section(run: Run, level: str = "##") -> list[str]:
    """Empty in a run without it; `level`: of its heading."""
    lines = [
        f"| {' | '.join(_cells(implementation, rows))} |"
        for rows in run.by_name().values()
        if is_served(rows)
        for implementation in BATCHING
        if implementation in rows
    ]
    if not lines:
        return []
    columns = ["clients", "requests", "batching", "x real time", "first sound", "95 %", "last", "95 %", "x off"]
    return [
        *("", f"{level} The service under load", ""),
        "Requests for a sentence, by clients that each send the next once they have an answer. `x real time`: seconds "
        "of speech a second, of all requests. Milliseconds from the request to the first and the last byte of sound: "
        "median, and what 95 % do not exceed. `x off`: the rate over that without batching, the median of the rounds' "
        "ratios and their range.",
        "",
        f"| {' | '.join(columns)} |",
        "|--:|--:|---|" + "--:|" * (len(columns) - 3),
        *lines,
    ]


def is_served(rows: Mapping[str, Row]) -> bool:
    """Whether a benchmark is of the service."""
    return any("clients" in row.info for row in rows.values())


def _cells(implementation: str, rows: Mapping[str, Row]) -> list[str]:
    row = rows[implementation]
    latency = row.info["latency"]
    ratio = "-"
    if implementation == FASTGLOW and ORDINARY in rows:
        ratios = results.times_as_fast(row, rows[ORDINARY])
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return [
        str(row.info["clients"]),
        str(row.info["requests"]),
        BATCHING[implementation],
        f"{row.info['times_real_time']:.3g}",
        *(f"{1e3 * latency[name]:,.0f}" for name in ("first_median", "first_95", "last_median", "last_95")),
        ratio,
    ]
