"""Makes the files to commit from a run: `python -m bench.publish bench/results/<time>/journal.jsonl`.

Of a run on a GPU it writes bench/baselines/<gpu>.json, the GPU's table in bench/README.md, and how long the steps took,
from which the next run's times follow (bench/step_seconds.json). Needs no GPU: the journal may come from another
machine. Tuned configurations are written by bench.tune itself, to kernels/configs/<gpu>.json. Of `make bench` on a CPU,
`bench/results/bench.json`, it writes the CPU's tables in bench/README.md.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fastglow.errors import FastglowError
from fastglow.files import replacing
from fastglow.kernels.launch import gpu_slug

from . import cpu_report, environment, gate, journal, results, serve_report, targets
from .readme import README, write_between
from .results import Run
from .steps import SECONDS_FILE


def markers(gpu: str | None) -> tuple[str, str]:
    slug = gpu_slug(gpu) if gpu else "cpu"
    return f"<!-- measured: {slug} -->", f"<!-- end: {slug} -->"


def section(run: Run) -> str:
    """The targets of one GPU, or a CPU's tables."""
    machine = run.machine
    if machine["gpu"] is None:
        return "\n".join([*cpu_report.speed(run), "", *targets.table(run), *serve_report.section(run, "###")])
    versions = f"torch {machine['torch']}, triton {machine['triton']}, commit {machine['commit']}."
    return "\n".join([f"### {machine['gpu']}", "", versions, "", *targets.table(run)])


def measured_seconds(journals: Sequence[Path]) -> dict[str, float]:
    """Of the steps that ended well: the sum over the attempts of a run, of the last run that has the step."""
    found: dict[str, float] = {}
    for path in journals:
        records = [record for record in journal.read(path) if "step" in record]
        codes = {record["step"]: record["code"] for record in records}
        found |= {
            step: round(sum(record["seconds"] for record in records if record["step"] == step), 1)
            for step, code in codes.items()
            if code == 0 and step != "report"
        }
    return found


def publish(runs: Sequence[Path], baselines: Path, readme: Path, seconds: Path) -> list[Path]:
    """The files that were written.

    Args:
        runs: journals, or pytest-benchmark's files.
        seconds: gets the time of each step; of a run on a GPU only, as the baseline.

    Raises:
        FastglowError: the results cannot be read.
    """
    run = results.load(runs)
    gpu = run.machine["gpu"]
    write_between(readme, *markers(gpu), section(run))
    if gpu is None:
        return [readme]
    path = results.baseline_path(baselines, gpu)
    gate.write_baseline(path, run)
    known = json.loads(seconds.read_text(encoding="utf-8"))
    with replacing(seconds) as temporary:
        temporary.write_text(json.dumps(known | measured_seconds(runs), indent=1, sort_keys=True) + "\n")
    return [path, readme, seconds]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.publish", description=__doc__.partition("\n")[0])
    parser.add_argument("run", nargs="+", type=Path, help="journal.jsonl of a run, or bench.json of `make bench`")
    options = parser.parse_args(arguments)
    try:
        written = publish(options.run, environment.BASELINES, README, SECONDS_FILE)
    except FastglowError as error:
        print(f"publish: {error}", file=sys.stderr)
        return 2
    print(f"wrote {', '.join(map(str, written))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
