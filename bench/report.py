"""The report of a run: tables, targets, a roofline plot, and all results as JSON.

`python -m bench.report RUN.json ... --out FOLDER` writes report.md, roofline.png and results.json.
"""

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from fastglow.errors import FastglowError
from fastglow.files import replacing

from . import cpu_report, environment, foreign_report, journal, memory_report, results, serve_report, targets
from .cells import IMPLEMENTATIONS, ceilings_line, memory_cell, time_cell
from .results import Row, Run
from .targets import FORMATS
from .workload import EAGER, FASTGLOW


def markdown(run: Run, tests: Sequence[str] = ()) -> str:
    """The whole report; `tests`: see `tests_section`."""
    machine = run.machine
    lines = [
        f"# fastglow on {machine['gpu'] or 'a CPU'}",
        "",
        *(_speed(run) if machine["gpu"] else cpu_report.speed(run)),
    ]
    lines += [
        *training_section(run),
        *memory_report.section(run),
        *foreign_report.section(run),
        *serve_report.section(run),
    ]
    if verdicts := targets.table(run):
        lines += ["", "## Targets", "", *verdicts]
    unmeasured = [
        f"{name} ({', '.join(absent)})"
        for name, rows in run.by_name().items()
        if (absent := [IMPLEMENTATIONS[i] for i in _expected(rows) if i not in rows])
    ]
    if unmeasured:
        lines += ["", f"Failed or skipped: {'; '.join(unmeasured)}."]
    lines += [*tests, "", "![roofline](roofline.png)", ""]
    return "\n".join(lines)


def _speed(run: Run) -> list[str]:
    """On a GPU."""
    machine = run.machine
    lines = [
        f"torch {machine['torch']}, triton {machine['triton']}, commit {machine['commit']}. {ceilings_line(machine)}",
        "",
        "Medians. `x eager`: the eager reference's time over ours. `% of ceiling`: of the copy bandwidth where `bound` "
        "is `memory`, of the matrix rate in the benchmark's dtype where it is `arithmetic`. `s` after a time: timed "
        "as launches on the stream, not as a CUDA graph.",
        "",
        "| benchmark | ours | eager | compile | peer | x eager | GB/s | TFLOP/s | % of ceiling | bound | memory |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|--:|",
    ]
    for name, rows in run.by_name().items():
        if not foreign_report.is_foreign(rows) and not serve_report.is_served(rows):
            lines.append(f"| {name} | {' | '.join(_cells(rows))} |")
    if timed_by_frame := [(name, rows) for name, rows in run.by_name().items() if any(map(_frames, rows.values()))]:
        lines += ["", "## Mel frames", "", "| benchmark | ours | eager | compile | peer |", "|---|--:|--:|--:|--:|"]
        for name, rows in timed_by_frame:
            cells = [
                _frames(rows[implementation]) if implementation in rows else "-" for implementation in IMPLEMENTATIONS
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


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
        lines.append(f"| {name} | {info['batch']} | {' | '.join(cells)} | {_gain(name, of_steps)} |")
    return lines


def _step(row: Row) -> str:
    memory = row.info["peak_memory_bytes"]
    parts = [time_cell(row), FORMATS[_rate_of(row)].format(row.info[_rate_of(row)])]
    return ", ".join(parts if memory is None else [*parts, memory_cell(memory)])


def _gain(name: str, of_steps: Mapping[str, Mapping[str, Row]]) -> str:
    """Our rate over that with precision off: of steps timed in turn, the median of the ratios and their range."""
    ours = of_steps[name].get(FASTGLOW)
    if ours is None:
        return "-"
    off = of_steps.get(name.replace(f"-{ours.info['precision']}/", "-off/"), {}).get(FASTGLOW)
    if off is None:
        return "-"
    if len(ratios := results.times_as_fast(ours, off)) > 1:
        return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    metric = _rate_of(ours)
    return f"{ours.info[metric] / off.info[metric]:.2f}"


def _rate_of(row: Row) -> str:
    """A training step's metric."""
    return "samples_per_second" if row.info.get("samples_per_second") else "frames_per_second"


def tests_section(journals: Sequence[Path]) -> list[str]:
    """How many tests and benchmarks passed, a line for each that failed, and one for each reason to skip some."""
    records = [record for path in journals for record in journal.read(path)]
    counts = Counter(journal.outcomes(records).values())
    if not counts:
        return []
    summary = ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items()))
    failed = [f"- `{test}`: {error}" for test, error in journal.errors(records).items()]
    skipped = [f"- skipped: {n} x {reason}" for reason, n in journal.reasons(records).items()]
    listed = [*failed, *skipped]
    return ["", "## Tests and benchmarks", "", f"{summary}.", *([""] if listed else []), *listed]


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
        rows = [row for row in run.rows if row.implementation == implementation and row.info["flops"]]
        if rows:
            axes.scatter(
                [row.info["flops"] / row.info["bytes"] for row in rows],
                [row.info["teraflops_per_second"] for row in rows],
                marker=marker,
                alpha=0.7,
                label=IMPLEMENTATIONS[implementation],
            )
    for row in run.rows:
        if row.implementation == FASTGLOW and row.info["flops"]:
            at = (row.info["flops"] / row.info["bytes"], row.info["teraflops_per_second"])
            axes.annotate(row.name, at, fontsize=5, xytext=(3, 3), textcoords="offset points")
    if ceilings := run.machine["ceilings"]:
        copied = ceilings["bytes_per_second"]
        intensities = [row.info["flops"] / row.info["bytes"] for row in run.rows if row.info["flops"]]
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
        "targets": targets.verdicts(run),
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


def _cells(rows: Mapping[str, Row]) -> list[str]:
    times = [time_cell(rows[name]) if name in rows else "-" for name in IMPLEMENTATIONS]
    ours = rows.get(FASTGLOW)
    if ours is None:
        return [*times, *["-"] * 6]
    info = ours.info
    of_eager = f"{results.speedup(ours, rows[EAGER]):.2f}" if EAGER in rows else "-"
    memory = info["peak_memory_bytes"]
    return [
        *times,
        of_eager,
        f"{info['gigabytes_per_second']:.4g}",
        f"{info['teraflops_per_second']:.4g}",
        f"{info['percent_of_ceiling']:.1f}",
        info["bound"],
        "-" if memory is None else memory_cell(memory),
    ]


def _frames(row: Row) -> str:
    """Time per decoder step, else frames per second over the batch; '' where a benchmark has neither, and for training
    steps, which have their own table."""
    if "precision" in row.info:
        return ""
    metrics = ("us_per_frame", "frames_per_second")
    return next((FORMATS[metric].format(row.info[metric]) for metric in metrics if row.info.get(metric)), "")


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
