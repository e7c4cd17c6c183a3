"""The tables of a run on a CPU: implementations side by side, in every precision."""

import statistics
from collections.abc import Mapping

from . import foreign_report, results, serve_report
from .cells import IMPLEMENTATIONS, ceilings_line, time_cell
from .results import Row, Run
from .workload import COMPILE, EAGER, FASTGLOW, PEER

RATIOS = {EAGER: "x eager", COMPILE: "x compile", PEER: "x peer"}


def speed(run: Run) -> list[str]:
    """The machine, and a table of everything but training steps, other people's models and the service, which have
    their own."""
    columns = ["benchmark", *IMPLEMENTATIONS.values(), *RATIOS.values(), "x peer in float32", "of the ceiling", "error"]
    lines = [
        machine_line(run),
        "",
        "Medians of rounds that time all columns and precisions of a benchmark in turn. `x`: the other's time over "
        "ours, the median of the rounds' ratios. Error: ours, relative to float64.",
        "",
        f"| {' | '.join(columns)} |",
        "|---|" + "--:|" * (len(columns) - 1),
    ]
    for name, rows in run.by_name().items():
        has_own_table = foreign_report.is_foreign(rows) or serve_report.is_served(rows)
        if not has_own_table and not any("precision" in row.info for row in rows.values()):
            lines.append(f"| {name} | {' | '.join(_cells(rows))} |")
    return lines


def machine_line(run: Run) -> str:
    machine = run.machine
    processor = f"{machine['processor']}, {machine['capability']}, {machine['threads']} thread(s)"
    return f"{processor}; torch {machine['torch']}, commit {machine['commit']}. {ceilings_line(machine)}"


def _cells(rows: Mapping[str, Row]) -> list[str]:
    times = [_time(rows[name]) if name in rows else "-" for name in IMPLEMENTATIONS]
    ours = rows.get(FASTGLOW)
    if ours is None:
        return [*times, *["-"] * (len(RATIOS) + 3)]
    info = ours.info
    ratios = [f"{results.speedup(ours, rows[name]):.2f}" if name in rows else "-" for name in RATIOS]
    peer = info.get("ratios", {}).get(PEER, {}).get("float32")
    return [
        *times,
        *ratios,
        f"{statistics.median(peer):.2f}" if peer else "-",
        _of_the_ceiling(info),
        f"{info['error']:.1g}",
    ]


def _of_the_ceiling(info: Mapping) -> str:
    """A decoder is held against the rate of memory, whatever its batch."""
    if (percent := info.get("percent_of_memory_rate")) is not None:
        return f"{percent:.0f} % of reading"
    bound = {"memory": "copying", "arithmetic": "products"}[info["bound"]]
    return f"{info['percent_of_ceiling']:.0f} % of {bound}" if info["flops"] else "-"


def _time(row: Row) -> str:
    """With what it means for speech: times real time, or the time of a step of the decoder."""
    if times := row.info.get("times_real_time"):
        return f"{time_cell(row)}, {times:.3g} x real time"
    if us := row.info.get("us_per_frame"):
        return f"{us / 1e3:.2f} ms a frame"
    return time_cell(row)
