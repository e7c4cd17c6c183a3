"""The regression gate: fails if an operation is slower than this GPU's baseline.

It compares ratios, fastglow's time over the eager reference's in the same run, so that the machine's load and clocks
cancel. `python -m bench.gate` runs the suite and judges it, `python -m bench.gate RUN.json ...` judges a finished run;
exit code 1: slower, 2: nothing to compare. `--write` makes the run the new baseline.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastglow.errors import FastglowError
from fastglow.files import replacing

from . import environment, results
from .results import Run
from .workload import COMPILE, EAGER, FASTGLOW

ALLOWANCE = 0.10
RERUNS = 2

OK, FASTER, SLOWER, MISSING, NEW = "ok", "faster", "SLOWER", "MISSING", "NEW"
FAILING = (SLOWER, MISSING, NEW)

Ratios = Mapping[str, float]


@dataclass(frozen=True)
class Verdict:
    """
    Attributes:
        name: of the benchmark.
        baseline, measured: fastglow's time over the eager reference's, or None.
        status: OK, FASTER (worth a new baseline), SLOWER, MISSING from the run, or NEW (not in the baseline).
    """

    name: str
    baseline: float | None
    measured: float | None
    status: str


def judge(baseline: Ratios, measured: Ratios) -> list[Verdict]:
    """One verdict per benchmark in either."""
    verdicts = []
    for name in sorted({*baseline, *measured}):
        before, now = baseline.get(name), measured.get(name)
        if now is None:
            status = MISSING
        elif before is None:
            status = NEW
        elif now > before * (1 + ALLOWANCE):
            status = SLOWER
        else:
            status = FASTER if now < before * (1 - ALLOWANCE) else OK
        verdicts.append(Verdict(name, before, now, status))
    return verdicts


def judge_with_reruns(
    baseline: Ratios, measured: Ratios, rerun: Callable[[list[str]], Ratios], reruns: int = RERUNS
) -> list[Verdict]:
    """As `judge`, but benchmarks that look slower are run again, and their ratio is the median of all runs.

    Args:
        baseline, measured: ratios by name.
        rerun: measures these names again.
        reruns: how many times.
    """
    slow = [verdict.name for verdict in judge(baseline, measured) if verdict.status == SLOWER]
    if not slow:
        return judge(baseline, measured)
    again = [rerun(slow) for _ in range(reruns)]
    settled = {name: statistics.median([measured[name], *(run[name] for run in again if name in run)]) for name in slow}
    return judge(baseline, {**measured, **settled})


def load_baseline(path: Path, gpu: str | None) -> Ratios:
    """
    Raises:
        FastglowError: the run had no GPU; no baseline; another GPU's baseline.
    """
    if gpu is None:
        raise FastglowError("this run had no GPU, and baselines are per GPU: run the suite on a GPU")
    if not path.exists():
        raise FastglowError(f"no baseline {path}: make this run the baseline with --write")
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["gpu"] != gpu:
        raise FastglowError(f"{path} is the baseline of {content['gpu']}, this run used {gpu}: measure on the same GPU")
    return content["ratios"]


def write_baseline(path: Path, run: Run) -> None:
    content = {key: run.machine[key] for key in ("gpu", "torch", "triton", "commit")}
    content["ratios"] = {name: round(ratio, 4) for name, ratio in sorted(run.ratios().items())}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def table(verdicts: Sequence[Verdict]) -> str:
    width = max((len(verdict.name) for verdict in verdicts), default=4)
    lines = [f"{'ours / eager':<{width}}  {'baseline':>8}  {'now':>8}  {'change':>7}"]
    for verdict in verdicts:
        before, now = verdict.baseline, verdict.measured
        change = "" if before is None or now is None else f"{100 * (now / before - 1):+.1f} %"
        columns = ["-" if ratio is None else f"{ratio:.4f}" for ratio in (before, now)]
        lines.append(f"{verdict.name:<{width}}  {columns[0]:>8}  {columns[1]:>8}  {change:>7}  {verdict.status}")
    return "\n".join(lines)


def measure(tests: Sequence[str]) -> Run | None:
    """Runs fastglow's and the eager benchmarks in a new process; None if it wrote no results."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.json"
        command = [sys.executable, "-m", "pytest", "-q", "--benchmark-quiet", f"--benchmark-json={file}"]
        subprocess.run([*command, "-k", f"not {COMPILE}", *tests], cwd=environment.ROOT, check=False)
        return results.load([file]) if file.exists() and file.stat().st_size else None


def measure_again(run: Run, names: Sequence[str]) -> Ratios:
    """New ratios for these names; failed benchmarks are missing."""
    rows = run.by_name()
    again = measure([rows[name][implementation].test for name in names for implementation in (FASTGLOW, EAGER)])
    return {} if again is None else again.ratios()


def run_gate(files: Sequence[Path], baseline: Path | None, write: bool) -> int:
    """The exit code.

    Raises:
        FastglowError: nothing to compare.
    """
    here = environment.describe()["gpu"]
    run = results.load(files) if files else None
    gpu = run.machine["gpu"] if run else here
    path = baseline or results.baseline_path(environment.BASELINES, gpu or "no GPU")
    known = {} if write and gpu and not path.exists() else load_baseline(path, gpu)
    if run is None:
        run = measure(["bench"])
    if run is None:
        raise FastglowError("the suite wrote no results: see above")
    if write:
        write_baseline(path, run)
        print(f"wrote {path}")
        return 0
    ratios = run.ratios()
    if gpu == here:
        verdicts = judge_with_reruns(known, ratios, lambda names: measure_again(run, names))
    else:
        verdicts = judge(known, ratios)  # another machine's run cannot be rerun here
    print(table(verdicts))
    failing = [verdict for verdict in verdicts if verdict.status in FAILING]
    print(f"gate: failed: {len(failing)} of {len(verdicts)} benchmarks" if failing else "gate: passed")
    return 1 if failing else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gate", description=__doc__.partition("\n")[0])
    parser.add_argument("run", nargs="*", type=Path, help="pytest-benchmark's JSON files; default: run the suite")
    parser.add_argument("--baseline", type=Path, help="default: bench/baselines/<gpu>.json")
    parser.add_argument("--write", action="store_true", help="make the run the new baseline")
    options = parser.parse_args(arguments)
    try:
        return run_gate(options.run, options.baseline, options.write)
    except FastglowError as error:
        print(f"gate: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
