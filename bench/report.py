"""The report of a run: tables, targets, a roofline plot, and all results as JSON.

`python -m bench.report RUN.json ... --out FOLDER` writes report.md, roofline.png and results.json.
"""

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from fastglow.errors import FastglowError
from fastglow.files import replacing

from . import environment, journal, results
from .results import Row, Run
from .workload import COMPILE, EAGER, FASTGLOW, PEER

IMPLEMENTATIONS = {FASTGLOW: "ours", EAGER: "eager", COMPILE: "compile", PEER: "peer"}

TARGETS = {
    "percent_of_ceiling": "{:.1f} % of ceiling",
    "percent_of_bfloat16_ceiling": "{:.1f} % of bf16 peak",
    "samples_per_second": "{:,.0f} samples/s",
    "frames_per_second": "{:,.0f} frames/s",
    "us_per_frame": "{:.1f} us/frame",
    "milliseconds": "{:.1f} ms",
    "times_real_time": "{:,.0f} x real time",
}
"""Metrics that have targets, and their formats."""

AT_MOST = ("us_per_frame", "milliseconds")
"""Metrics whose target is an upper bound; the others have lower bounds."""

MISSED, MET = "MISSED", "met"


STATED_FOR = {"memory": 4.3e12, "arithmetic": 790e12}
"""An H200's copied bytes and bfloat16 FLOPs a second, for which the absolute targets are stated."""

ABSOLUTE = ("samples_per_second", "frames_per_second", "us_per_frame", "milliseconds", "times_real_time")


def scaled(metric: str, target: float, bound: str, ceilings: Mapping | None) -> float:
    """An absolute target of an H200, for a GPU of other ceilings; a percentage needs no scaling.

    Args:
        metric: key of TARGETS.
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
    for metric, target in ours.info["targets"].items():
        value = ours.info[metric]
        if value is not None:
            target = scaled(metric, target, ours.info["bound"], ceilings)
            sign, reached = ("<=", value <= target) if metric in AT_MOST else (">=", value >= target)
            word = MET if reached else MISSED
            found.append((f"{sign} {TARGETS[metric].format(target)}", f"{word} ({TARGETS[metric].format(value)})"))
    if COMPILE in rows:
        speedup = rows[COMPILE].seconds / ours.seconds
        found.append((">= 1.00 x compile", f"{MET if speedup >= 1 else MISSED} ({speedup:.2f} x)"))
    return found


def markdown(run: Run, tests: Sequence[str] = ()) -> str:
    """The whole report; `tests`: see `tests_section`."""
    machine = run.machine
    lines = [
        f"# fastglow on {machine['gpu'] or 'a CPU'}",
        "",
        f"torch {machine['torch']}, triton {machine['triton']}, commit {machine['commit']}. {_ceilings(machine)}",
        "",
        "Medians. `x eager`: the eager reference's time over ours. `% of ceiling`: of the copy bandwidth where `bound` "
        "is `memory`, of the matrix rate in the benchmark's dtype where it is `arithmetic`. `s` after a time: timed "
        "as launches on the stream, not as a CUDA graph.",
        "",
        "| benchmark | ours | eager | compile | peer | x eager | GB/s | TFLOP/s | % of ceiling | bound | memory |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|--:|",
    ]
    for name, rows in run.by_name().items():
        lines.append(f"| {name} | {' | '.join(_cells(rows))} |")
    if timed_by_frame := [(name, rows) for name, rows in run.by_name().items() if any(map(_frames, rows.values()))]:
        lines += ["", "## Mel frames", "", "| benchmark | ours | eager | compile | peer |", "|---|--:|--:|--:|--:|"]
        for name, rows in timed_by_frame:
            cells = [
                _frames(rows[implementation]) if implementation in rows else "-" for implementation in IMPLEMENTATIONS
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += training_section(run)
    verdicts = [
        (name, *verdict) for name, rows in run.by_name().items() for verdict in judged(rows, machine["ceilings"])
    ]
    if verdicts:
        lines += ["", "## Targets", "", "| benchmark | target | result |", "|---|---|---|"]
        lines += [f"| {' | '.join(verdict)} |" for verdict in verdicts]
        missed = sum(result.startswith(MISSED) for _, _, result in verdicts)
        lines += ["", f"{len(verdicts) - missed} of {len(verdicts)} targets met."]
    unmeasured = [
        f"{name} ({', '.join(absent)})"
        for name, rows in run.by_name().items()
        if (absent := [IMPLEMENTATIONS[i] for i in _expected(rows) if i not in rows])
    ]
    if unmeasured:
        lines += ["", f"Failed or skipped: {'; '.join(unmeasured)}."]
    lines += [*tests, "", "![roofline](roofline.png)", ""]
    return "\n".join(lines)


def _expected(rows: Mapping[str, Row]) -> Sequence[str]:
    """The implementations without which a benchmark's row is incomplete."""
    return next(iter(rows.values())).info.get("implementations", (FASTGLOW, EAGER))


def training_section(run: Run) -> list[str]:
    """Time, rate and memory of every implementation's training steps, and what a precision gains over float32."""
    of_steps = {
        name: rows for name, rows in run.by_name().items() if any("precision" in row.info for row in rows.values())
    }
    if not of_steps:
        return []
    lines = ["", "## Training steps", ""]
    lines += ["`x off`: our rate over that in float32, without TF32. Memory: the peak of a step.", ""]
    lines += ["| benchmark | batch | ours | eager | compile | peer | x off |", "|---|--:|--:|--:|--:|--:|--:|"]
    for name, rows in of_steps.items():
        info = next(iter(rows.values())).info
        cells = [_step(rows[i]) if i in rows else "-" for i in IMPLEMENTATIONS]
        if in_turn := {i: _beside(row) for i, row in rows.items() if row.info.get("beside")}:
            others = [_step(in_turn[i]) if i in in_turn else "-" for i in IMPLEMENTATIONS]
            lines.append(f"| {next(iter(in_turn.values())).name} | {info['batch']} | {' | '.join(others)} | 1.00 |")
        lines.append(f"| {name} | {info['batch']} | {' | '.join(cells)} | {_gain(name, of_steps)} |")
    return lines


def _step(row: Row) -> str:
    memory = row.info["peak_memory_bytes"]
    parts = [_time(row), TARGETS[_rate_of(row)].format(row.info[_rate_of(row)])]
    return ", ".join(parts if memory is None else [*parts, f"{memory / 2**20:,.0f} MiB"])


def _beside(row: Row) -> Row:
    """What was timed in turn with a row."""
    other, metric = row.info["beside"], _rate_of(row)
    rate = row.info[metric] * row.seconds / other["seconds"]
    name = row.name.replace(row.info["case"], other["case"])
    return replace(row, name=name, seconds=other["seconds"], info=row.info | {metric: rate})


def _gain(name: str, of_steps: Mapping[str, Mapping[str, Row]]) -> str:
    """Our rate over that with precision off: of steps timed in turn, the median of the ratios and their range."""
    ours = of_steps[name].get(FASTGLOW)
    if ours is None:
        return "-"
    if beside := ours.info.get("beside"):
        ratios = beside["ratios"]
        return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    off = of_steps.get(name.replace(f"-{ours.info['precision']}/", "-off/"), {}).get(FASTGLOW)
    if off is None:
        return "-"
    metric = _rate_of(ours)
    return f"{ours.info[metric] / off.info[metric]:.2f}"


def _rate_of(row: Row) -> str:
    """A training step's metric."""
    return "samples_per_second" if row.info.get("samples_per_second") else "frames_per_second"


def tests_section(journals: Sequence[Path]) -> list[str]:
    """How many tests and benchmarks passed, and a line for each that failed."""
    records = [record for path in journals for record in journal.read(path)]
    counts = Counter(journal.outcomes(records).values())
    if not counts:
        return []
    summary = ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items()))
    failed = [f"- `{test}`: {error}" for test, error in journal.errors(records).items()]
    return ["", "## Tests and benchmarks", "", f"{summary}.", *([""] if failed else []), *failed]


def plot_roofline(run: Run, path: Path) -> None:
    """Every implementation's TFLOP/s over FLOPs per byte, under the ceilings."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log", xlabel="FLOPs per byte", ylabel="TFLOP/s")
    axes.set_title(f"{run.machine['gpu'] or 'CPU'}, torch {run.machine['torch']}, commit {run.machine['commit']}")
    for implementation, marker in zip(IMPLEMENTATIONS, "o^sD", strict=True):
        rows = [row for row in run.rows if row.implementation == implementation]
        if rows:
            axes.scatter(
                [row.info["flops"] / row.info["bytes"] for row in rows],
                [row.info["teraflops_per_second"] for row in rows],
                marker=marker,
                alpha=0.7,
                label=IMPLEMENTATIONS[implementation],
            )
    for row in run.rows:
        if row.implementation == FASTGLOW:
            at = (row.info["flops"] / row.info["bytes"], row.info["teraflops_per_second"])
            axes.annotate(row.name, at, fontsize=5, xytext=(3, 3), textcoords="offset points")
    if ceilings := run.machine["ceilings"]:
        copied = ceilings["bytes_per_second"]
        intensities = [row.info["flops"] / row.info["bytes"] for row in run.rows]
        for dtype, rate in ceilings["flops_per_second"].items():
            ridge = rate / copied
            low, high = min([ridge / 10, *intensities]), max([ridge * 10, *intensities])
            roof = [low * copied / 1e12, rate / 1e12, rate / 1e12]
            axes.plot([low, ridge, high], roof, linewidth=1, label=f"{dtype}: {rate / 1e12:.3g} TFLOP/s")
    axes.grid(which="both", alpha=0.2)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=150, format="png")


def write_report(run: Run | None, folder: Path, tests: Sequence[str] = ()) -> None:
    """Writes results.json, report.md and roofline.png; only report.md of a run without benchmarks."""
    folder.mkdir(parents=True, exist_ok=True)
    if run is None:
        with replacing(folder / "report.md") as temporary:
            temporary.write_text("\n".join(["# fastglow", *tests, ""]), encoding="utf-8")
        return
    everything = {
        "machine": run.machine,
        "benchmarks": [asdict(row) for row in run.rows],
        "targets": {name: judged(rows, run.machine["ceilings"]) for name, rows in run.by_name().items()},
    }
    with replacing(folder / "results.json") as temporary:
        temporary.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    with replacing(folder / "report.md") as temporary:
        temporary.write_text(markdown(run, tests), encoding="utf-8")
    try:
        with replacing(folder / "roofline.png") as temporary:
            plot_roofline(run, temporary)
    except ModuleNotFoundError as error:
        print(f"report: no roofline.png: {error}", file=sys.stderr)


def _ceilings(machine: Mapping) -> str:
    ceilings = machine["ceilings"]
    if ceilings is None:
        return "Ceilings were not measured."
    rates = ", ".join(f"{dtype} {rate / 1e12:.4g} TFLOP/s" for dtype, rate in ceilings["flops_per_second"].items())
    return f"Ceilings: copy {ceilings['bytes_per_second'] / 1e9:.4g} GB/s; matrix product {rates}."


def _cells(rows: Mapping[str, Row]) -> list[str]:
    times = [_time(rows[name]) if name in rows else "-" for name in IMPLEMENTATIONS]
    ours = rows.get(FASTGLOW)
    if ours is None:
        return [*times, *["-"] * 6]
    info = ours.info
    speedup = f"{rows[EAGER].seconds / ours.seconds:.2f}" if EAGER in rows else "-"
    memory = info["peak_memory_bytes"]
    return [
        *times,
        speedup,
        f"{info['gigabytes_per_second']:.4g}",
        f"{info['teraflops_per_second']:.4g}",
        f"{info['percent_of_ceiling']:.1f}",
        info["bound"],
        "-" if memory is None else f"{memory / 2**20:,.0f} MiB",
    ]


def _frames(row: Row) -> str:
    """Time per decoder step, else frames per second over the batch; '' where a benchmark has neither, and for training
    steps, which have their own table."""
    if "precision" in row.info:
        return ""
    metrics = ("us_per_frame", "frames_per_second")
    return next((TARGETS[metric].format(row.info[metric]) for metric in metrics if row.info.get(metric)), "")


def _time(row: Row) -> str:
    seconds = row.seconds
    text = f"{seconds * 1e3:.4g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.4g} us"
    text = f"{seconds * 1e3:,.0f} ms" if seconds >= 1 else text
    return text + " s" * row.info["method"].startswith("stream")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__.partition("\n")[0])
    parser.add_argument("run", nargs="+", type=Path, help="pytest-benchmark's JSON files of the run, or journals")
    parser.add_argument("--out", type=Path, default=environment.RESULTS, help="folder, default bench/results")
    options = parser.parse_args(arguments)
    tests = tests_section([path for path in options.run if path.suffix == ".jsonl"])
    try:
        only_tests = tests and not results.any_benchmark(options.run)
        write_report(None if only_tests else results.load(options.run), options.out, tests)
    except FastglowError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.out / 'report.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
