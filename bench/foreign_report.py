"""The report's table of other people's models before and after `fastglow.accelerate`."""

import statistics
from collections.abc import Mapping

from . import results
from .cells import time_cell
from .results import Row, Run
from .workload import EAGER, FASTGLOW, FORWARD_BACKWARD

COLUMNS = "package module swapped shapes dtype before after ratio difference".split()

DIRECTIONS = {FORWARD_BACKWARD: "training"}


def section(run: Run) -> list[str]:
    """Empty in a run without them."""
    foreign = {name: rows for name, rows in run.by_name().items() if is_foreign(rows)}
    if not foreign:
        return []
    return [
        "",
        "## Other people's models, before and after accelerate",
        "",
        "Medians of one call, launched from the host: in inference a forward pass, in training forward and backward. "
        "`ratio`: the time before over the time after; of models timed in turn, the median of the rounds' ratios and "
        "their range. `difference`: the largest relative difference of a result (Euclidean norms) with the same random "
        "numbers; all gradients are one.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---|---|---|---|---|--:|--:|--:|--:|",
        *(f"| {' | '.join(_cells(rows))} |" for rows in foreign.values()),
    ]


def is_foreign(rows: Mapping[str, Row]) -> bool:
    """Whether a benchmark is of somebody else's model."""
    return any("swapped" in row.info for row in rows.values())


def _cells(rows: Mapping[str, Row]) -> list[str]:
    before, after = rows.get(EAGER), rows.get(FASTGLOW)
    info = next(iter(rows.values())).info
    swapped = ", ".join(f"{n} x {op}" for op, n in info["swapped"].items())
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in info["shapes"].items())
    direction = DIRECTIONS.get(info["direction"], info["direction"])
    return [
        info["package"],
        f"{info['module']}, {direction}",
        swapped or "nothing",
        shapes,
        info["dtype"],
        "-" if before is None else time_cell(before),
        "-" if after is None else time_cell(after),
        "-" if before is None or after is None else _ratio(after, before),
        "-" if after is None else f"{after.info['error']:.1g}",
    ]


def _ratio(after: Row, before: Row) -> str:
    ratios = results.times_as_fast(after, before)
    spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
    return f"{statistics.median(ratios):.2f}{spread}"
