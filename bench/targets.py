"""The targets of benchmarks: what they say and whether a run meets them; README.md lists them."""

from collections.abc import Mapping

from . import results
from .results import Row, Run
from .workload import COMPILE, FASTGLOW

FORMATS = {
    "percent_of_ceiling": "{:.1f} % of ceiling",
    "percent_of_bfloat16_ceiling": "{:.1f} % of bf16 peak",
    "samples_per_second": "{:,.0f} samples/s",
    "frames_per_second": "{:,.0f} frames/s",
    "us_per_frame": "{:.1f} us/frame",
    "milliseconds": "{:.1f} ms",
    "times_real_time": "{:,.0f} x real time",
    "times_peer": "{:.2f} x NVIDIA's in float32",
    "activations_of_peer": "{:.2f} x NVIDIA's activation memory",
    "times_ordinary": "{:.2f} x the ordinary time",
}
"""Metrics that have targets, and their formats."""

AT_MOST = ("us_per_frame", "milliseconds", "activations_of_peer", "times_ordinary")
"""Metrics whose target is an upper bound; the others have lower bounds."""

MISSED, MET = "MISSED", "met"

STATED_FOR = {"memory": 4.3e12, "arithmetic": 790e12}
"""An H200's copied bytes and bfloat16 FLOPs a second, for which the absolute targets are stated."""

ABSOLUTE = ("samples_per_second", "frames_per_second", "us_per_frame", "milliseconds", "times_real_time")


def scaled(metric: str, target: float, bound: str, ceilings: Mapping | None) -> float:
    """An absolute target of an H200, for a GPU of other ceilings; a percentage needs no scaling.

    Args:
        metric: key of FORMATS.
        target: on an H200.
        bound: 'memory' or 'arithmetic': what limits the benchmark.
        ceilings: as measured, None if they were not.
    """
    if metric not in ABSOLUTE or ceilings is None:
        return target
    rates = {"memory": ceilings["bytes_per_second"], "arithmetic": ceilings["flops_per_second"].get("bfloat16")}
    ratio = (rates[bound] or STATED_FOR[bound]) / STATED_FOR[bound]
    return target / ratio if metric in AT_MOST else target * ratio


def judged(rows: Mapping[str, Row], ceilings: Mapping | None = None) -> list[tuple[str, str]]:
    """(target, 'met (value)' or 'MISSED (value)') of fastglow's row; matching torch.compile is a target too."""
    ours = rows.get(FASTGLOW)
    if ours is None:
        return []
    found = []
    compared = results.compared(rows)
    for metric, target in ours.info["targets"].items():
        value = compared.get(metric, ours.info.get(metric))
        if value is not None:
            target = scaled(metric, target, ours.info["bound"], ceilings)
            sign, reached = ("<=", value <= target) if metric in AT_MOST else (">=", value >= target)
            word = MET if reached else MISSED
            found.append((f"{sign} {FORMATS[metric].format(target)}", f"{word} ({FORMATS[metric].format(value)})"))
    if COMPILE in rows:
        times = results.speedup(ours, rows[COMPILE])
        found.append((">= 1.00 x compile", f"{MET if times >= 1 else MISSED} ({times:.2f} x)"))
    return found


def verdicts(run: Run) -> dict[str, list[tuple[str, str]]]:
    """`judged` by name. On a CPU absolute targets stay as they are stated."""
    ceilings = run.machine["ceilings"] if run.machine["gpu"] else None
    return {name: judged(rows, ceilings) for name, rows in run.by_name().items()}


def table(run: Run) -> list[str]:
    """In Markdown; empty without targets."""
    found = [(name, *verdict) for name, of_name in verdicts(run).items() for verdict in of_name]
    if not found:
        return []
    head = ["| benchmark | target | measured |", "|---|---|---|"]
    missed = sum(result.startswith(MISSED) for _, _, result in found)
    summary = ["", f"{len(found) - missed} of {len(found)} targets met."]
    return head + [f"| {' | '.join(verdict)} |" for verdict in found] + summary
