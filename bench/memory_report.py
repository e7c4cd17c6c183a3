"""The table of training's memory: activations, and the time that saving them costs."""

from . import results
from .cells import memory_cell
from .results import Run
from .workload import FASTGLOW, ORDINARY, PEER

COLUMNS = {FASTGLOW: "ours", ORDINARY: "ours, ordinary", PEER: "peer"}


def section(run: Run) -> list[str]:
    """Of every training step; empty without any."""
    lines = []
    for name, rows in run.by_name().items():
        if FASTGLOW not in rows or rows[FASTGLOW].info.get("activation_bytes") is None:
            continue
        found = [rows[i].info.get("activation_bytes") if i in rows else None for i in COLUMNS]
        compared = results.compared(rows)
        ratios = [compared.get(metric) for metric in ("activations_of_peer", "times_ordinary")]
        cells = ["-" if n is None else memory_cell(n) for n in found]
        lines.append(" | ".join(["", name, *cells, *("-" if x is None else f"{x:.2f}" for x in ratios), ""]).strip())
    if not lines:
        return []
    return [
        *("", "## Memory of training", ""),
        "Activations: the peak of a forward and backward pass above weights, gradients and batch. `-saving`: with "
        "`memory_saving`; `ordinary`: without. `x peer`: our activations over NVIDIA's. `x time`: our time over the "
        "ordinary.",
        "",
        f"| benchmark | {' | '.join(COLUMNS.values())} | x peer | x time |",
        "|---|" + "--:|" * (len(COLUMNS) + 2),
        *lines,
    ]
