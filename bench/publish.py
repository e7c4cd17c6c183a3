"""Makes the files to commit from a run: `python -m bench.publish bench/results/<time>/journal.jsonl`.

Writes bench/baselines/<gpu>.json, the GPU's table in bench/README.md, and how long the steps took, from which the
next run's times follow (bench/step_seconds.json). Needs no GPU: the journal may come from another machine. Tuned
configurations are written by bench.tune itself, to kernels/configs/<gpu>.json.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fastglow.errors import FastglowError
from fastglow.files import replacing
from fastglow.kernels.launch import gpu_slug

from . import environment, gate, journal, report, results
from .readme import README, write_between
from .results import Run
from .steps import SECONDS_FILE


def markers(gpu: str) -> tuple[str, str]:
    slug = gpu_slug(gpu)
    return f"<!-- measured: {slug} -->", f"<!-- end: {slug} -->"


def section(run: Run) -> str:
    """The targets of one GPU."""
    rows = [
        f"| {name} | {target} | {found} |"
        for name, of_name in run.by_name().items()
        for target, found in report.judged(of_name, run.machine["ceilings"])
    ]
    versions = f"torch {run.machine['torch']}, triton {run.machine['triton']}, commit {run.machine['commit']}."
    head = [f"### {run.machine['gpu']}", "", versions, "", "| benchmark | target | measured |", "|---|---|---|"]
    return "\n".join([*head, *rows])


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


def publish(journals: Sequence[Path], baselines: Path, readme: Path, seconds: Path) -> Path:
    """The baseline's path.

    Args:
        seconds: gets the time of each step.

    Raises:
        FastglowError: the run had no GPU, or its results cannot be read.
    """
    run = results.load(journals)
    gpu = run.machine["gpu"]
    if gpu is None:
        raise FastglowError("this run had no GPU, and baselines are per GPU: run `make gpu` on a GPU")
    path = results.baseline_path(baselines, gpu)
    gate.write_baseline(path, run)
    write_between(readme, *markers(gpu), section(run))
    known = json.loads(seconds.read_text(encoding="utf-8"))
    with replacing(seconds) as temporary:
        temporary.write_text(json.dumps(known | measured_seconds(journals), indent=1, sort_keys=True) + "\n")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.publish", description=__doc__.partition("\n")[0])
    parser.add_argument("run", nargs="+", type=Path, help="journal.jsonl of a run")
    options = parser.parse_args(arguments)
    try:
        path = publish(options.run, environment.BASELINES, README, SECONDS_FILE)
    except FastglowError as error:
        print(f"publish: {error}", file=sys.stderr)
        return 2
    print(f"wrote {path}, {README} and {SECONDS_FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
