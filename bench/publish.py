"""Makes the files to commit from a run: `python -m bench.publish bench/results/<time>/journal.jsonl`.

Writes bench/baselines/<gpu>.json and the GPU's table in bench/README.md. Needs no GPU: the journal may come from
another machine. Tuned configurations are written by bench.tune itself, to kernels/configs/<gpu>.json.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fastglow.errors import FastglowError
from fastglow.files import replacing
from fastglow.kernels.launch import gpu_slug

from . import environment, gate, report, results
from .results import Run

README = environment.ROOT / "bench" / "README.md"


def markers(gpu: str) -> tuple[str, str]:
    slug = gpu_slug(gpu)
    return f"<!-- measured: {slug} -->", f"<!-- end: {slug} -->"


def section(run: Run) -> str:
    """The targets of one GPU, between its markers."""
    start, end = markers(run.machine["gpu"])
    rows = [
        f"| {name} | {target} | {found} |"
        for name, of_name in run.by_name().items()
        for target, found in report.judged(of_name, run.machine["ceilings"])
    ]
    versions = f"torch {run.machine['torch']}, triton {run.machine['triton']}, commit {run.machine['commit']}."
    head = [f"### {run.machine['gpu']}", "", versions, "", "| benchmark | target | measured |", "|---|---|---|"]
    return "\n".join([start, *head, *rows, end])


def placed(text: str, gpu: str, table: str) -> str:
    """The text with the GPU's table in place of its old one, else at the end."""
    start, end = markers(gpu)
    if start in text and end in text:
        before, _, rest = text.partition(start)
        return before + table + rest.partition(end)[2]
    return f"{text.rstrip()}\n\n{table}\n"


def publish(journals: Sequence[Path], baselines: Path, readme: Path) -> Path:
    """The baseline's path.

    Raises:
        FastglowError: the run had no GPU, or its results cannot be read.
    """
    run = results.load(journals)
    gpu = run.machine["gpu"]
    if gpu is None:
        raise FastglowError("this run had no GPU, and baselines are per GPU: run `make gpu` on a GPU")
    path = results.baseline_path(baselines, gpu)
    gate.write_baseline(path, run)
    with replacing(readme) as temporary:
        temporary.write_text(placed(readme.read_text(encoding="utf-8"), gpu, section(run)), encoding="utf-8")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.publish", description=__doc__.partition("\n")[0])
    parser.add_argument("run", nargs="+", type=Path, help="journal.jsonl of a run")
    options = parser.parse_args(arguments)
    try:
        path = publish(options.run, environment.BASELINES, README)
    except FastglowError as error:
        print(f"publish: {error}", file=sys.stderr)
        return 2
    print(f"wrote {path} and {README}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
