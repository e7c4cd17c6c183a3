"""The predictions as Markdown tables."""

from collections.abc import Sequence
from typing import Any

from .chips import CHIPS, MULTIPROCESSORS, Chip, occupancy, predict

MARKERS = ("<!-- predicted: written by python -m bench.cost_model -->", "<!-- end of predicted -->")


def tables(calls: Sequence[dict[str, Any]]) -> str:
    return "\n\n".join((_targets(calls), _launches(calls)))


def _row(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _head(*cells: str) -> list[str]:
    return [_row(*cells), "|" + "---|" * len(cells)]


def metric(chip: Chip, call: dict[str, Any], name: str, seconds: float) -> float:
    """A target's metric for a call that takes `seconds`."""
    moving, computing = call["bytes"] / chip.copy, call["flops"] / chip.products
    if name == "percent_of_ceiling":
        return 100 * (moving if call["dtype"] == "float32" else max(moving, computing)) / seconds
    if name == "percent_of_bfloat16_ceiling":
        return 100 * computing / seconds
    if name == "us_per_frame":
        return 1e6 * seconds / call["steps"]
    return call[name.removesuffix("_per_second")] / seconds


UNITS = {
    "percent_of_ceiling": "% of ceiling",
    "percent_of_bfloat16_ceiling": "% of bf16 peak",
    "us_per_frame": "us a frame",
    "frames_per_second": "frames/s",
    "samples_per_second": "samples/s",
}


def _number(x: float) -> str:
    return f"{x / 1e6:.2f} M" if x >= 1e5 else f"{x:.3g}"


def _targets(calls: Sequence[dict[str, Any]]) -> str:
    head = ["call", "launches", "PyTorch operations"]
    lines = _head(*head, *(f"{chip.name}, us" for chip in CHIPS), "slowest launch, H100", "target", "predicted")
    for call in calls:
        found = [predict(chip, call) for chip in CHIPS]
        counted = [x for x in call["launches"] if x["work"]]
        totals = [(seconds * x["count"], x["kernel"], bound) for x, (seconds, bound) in
                  zip(counted, found[0].launches, strict=True)]  # fmt: skip
        _, kernel, bound = max(totals, default=(0, "", ""))
        slowest = f"{kernel.removesuffix('_kernel')}: {bound}"
        operators = call["operators"]["count"]
        if found[0].operators * call["repeats"] > found[0].seconds / 2:
            slowest = "PyTorch operations"
        targets, predicted = [], []
        for name, value in call["targets"].items():
            targets.append(f"{_number(value)} {UNITS[name]}")
            values = [_number(metric(chip, call, name, x.seconds)) for chip, x in zip(CHIPS, found, strict=True)]
            predicted.append(" / ".join(values))
        lines.append(
            _row(
                call["name"],
                call["repeats"] * sum(x["count"] for x in counted),
                call["repeats"] * operators,
                *(f"{1e6 * x.seconds:.4g}" for x in found),
                slowest,
                "; ".join(targets),
                "; ".join(predicted),
            )
        )
    return "\n".join(lines)


def _launches(calls: Sequence[dict[str, Any]]) -> str:
    """Each kernel at each size once: the longest of its launches in a call."""
    lines = _head(
        "kernel", "call", "programs", "registers", "shared KB", "blocks/SM", "waves", "L2 MB", "distinct MB", "GFLOP",
        "narrow", *(f"{chip.name}, us" for chip in CHIPS), "bound, H100",
    )  # fmt: skip
    rows = []
    for call in calls:
        found = [predict(chip, call).launches for chip in CHIPS]
        counted = [x for x in call["launches"] if x["work"]]
        longest: dict[str, tuple] = {}
        for x, *times in zip(counted, *found, strict=True):
            kernel = x["kernel"] + (f" {x['work']['grid'][0]}" if call["op"] == "decode_loop" else "")
            if kernel not in longest or times[0][0] > longest[kernel][1][0][0]:
                longest[kernel] = x, times
        for x, times in longest.values():
            work, binary = x["work"], x["binary"]
            blocks = occupancy(binary)
            rows.append(
                _row(
                    x["kernel"].removesuffix("_kernel"),
                    call["name"],
                    work["programs"],
                    binary["registers"],
                    binary["shared"] // 1024,
                    blocks,
                    f"{work['programs'] / (MULTIPROCESSORS * blocks):.2f}",
                    f"{work['bytes'] / 1e6:.4g}",
                    f"{work['unique'] / 1e6:.4g}",
                    f"{work['flops'] / 1e9:.3g}",
                    f"{100 * binary['narrow']:.0f} %" if binary["narrow"] else "",
                    *(f"{1e6 * seconds:.4g}" for seconds, _ in times),
                    times[0][1],
                )
            )
    return "\n".join([*lines, *sorted(rows)])
