"""All GPU tests and benchmarks within ten minutes: `make gpu`.

Runs the tests marked `gpu`, the benchmarks, the tuning and the report. Before the benchmarks, processes side by side
compile what they launch. Each file runs in its own process, so that a kernel that breaks the CUDA context stops no
other file. Every finished test and benchmark is in journal.jsonl at once, and a later run goes on where this one
stopped. The exit code is 1 if any step failed.
"""

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from functools import partial
from itertools import groupby
from pathlib import Path

from . import environment, journal
from .steps import GRACE, PARTS, Step, steps

LIMIT = 580.0  # seconds, in total
REPORT_LIMIT = 30.0
WORKERS = max(1, min(6, (os.cpu_count() or 1) // 2))
"""Steps at a time, of those that run together: compiling kernels one by one takes minutes. Benchmarks run alone."""
SHORTEST = 60.0  # for a step, while there is as much for each
LEAST = 3 * GRACE  # for a step; less is not worth a start
NOTHING_LEFT = 5  # pytest's exit code if no test was selected
PR_SET_PDEATHSIG = 1


def _in_the_child() -> None:
    # A background shell job ignores SIGINT, and its children inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # A step must not go on measuring when the run was killed and another began.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run(step: Step, out: Path, limit: float) -> int:
    """Runs a step, output to its log; interrupts it when its time is up. Returns its exit code."""
    with open(out / f"{step.name}.log", "wb") as log:
        process = subprocess.Popen(
            step.command(limit),
            cwd=environment.ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_in_the_child,
        )
        try:
            code = process.wait(limit - GRACE)
            return 0 if code == NOTHING_LEFT else code
        except subprocess.TimeoutExpired:
            log.write(f"\nstopped after {limit - GRACE:.0f} s\n".encode())
            log.flush()
            os.killpg(process.pid, signal.SIGINT)
        try:
            return process.wait(GRACE) or 1
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return 1


def groups(todo: Sequence[Step]) -> list[list[Step]]:
    """The steps in order, those together that run at the same time."""
    found: list[list[Step]] = []
    for together, neighbours in groupby(todo, key=lambda step: step.together):
        some = list(neighbours)
        found += [some] if together else [[step] for step in some]
    return found


def expected(group: Sequence[Step]) -> float:
    """Seconds that a group is expected to take."""
    seconds = [step.seconds for step in group]
    return max(max(seconds), sum(seconds) / min(len(group), WORKERS))


def time_for(group: Sequence[Step], todo: Sequence[Step], left: float) -> float:
    """The group's part of the time left, in proportion to what it is expected to take. It is enough to import PyTorch
    and compile, as long as an equal part for each group would be."""
    all_groups = groups(todo)
    proportional = left * expected(group) / sum(map(expected, all_groups))
    return min(left, max(LEAST, min(SHORTEST, left / len(all_groups)), proportional))


def run_all(todo: Sequence[Step], out: Path, deadline: float) -> dict[str, int]:
    """Exit codes by step, also in the journal; `deadline` in `time.monotonic()` seconds."""
    codes: dict[str, int] = {}
    waiting = list(todo)
    for group in groups(todo):
        group.sort(key=lambda step: -step.seconds)  # a long one that starts last would run alone
        now = time.monotonic()
        end = now + time_for(group, waiting, deadline - now)
        with ThreadPoolExecutor(WORKERS if len(group) > 1 else 1) as pool:
            found = pool.map(partial(_run_until, out=out, end=end), group)
            codes |= zip([step.name for step in group], found, strict=True)
        waiting = waiting[len(group) :]
    return codes


def _run_until(step: Step, out: Path, end: float) -> int:
    start = time.monotonic()
    limit = end - start
    if limit < 2 * GRACE:
        print(f"{step.name}: no time left, run again", flush=True)
        return 1
    code = run(step, out, limit)
    took, verdict = time.monotonic() - start, "ok" if code == 0 else f"exit {code}"
    for path in {step.journal or out / "journal.jsonl", out / "journal.jsonl"}:
        journal.append(path, {"step": step.name, "code": code, "seconds": round(took, 1)})
    print(f"{step.name}: {verdict}, {took:.0f} of {limit:.0f} s", flush=True)
    return code


def unfinished(out: Path, todo: Sequence[Step]) -> list[Step]:
    """The steps that have not ended well, those that were tried last, so that they do not take all time of each run."""
    own = {step.name: step.journal or out / "journal.jsonl" for step in todo}
    codes = {file: _codes(file) for file in own.values()}
    tried = {name for name, file in own.items() if name in codes[file]}
    done = {name for name in tried if codes[own[name]][name] == 0}
    left = [step for step in todo if step.name not in done]
    left = [step for step in left if not step.prepares or (step.name not in tried and step.prepares not in done)]
    return sorted(left, key=lambda step: step.name in tried)


def _codes(file: Path) -> dict[str, int]:
    return {record["step"]: record["code"] for record in journal.read(file) if "step" in record}


def identity() -> dict[str, str | None]:
    """What results of one folder have in common: gpu, torch, triton and commit."""
    return environment.describe()


def folder_for(results: Path, fresh: bool) -> Path:
    """The latest folder of this machine, these versions and this commit; else a new one."""
    for folder in [] if fresh else sorted(results.glob("*/identity.json"), reverse=True):
        try:
            if json.loads(folder.read_text(encoding="utf-8")) == identity():
                return folder.parent
        except ValueError:
            continue  # a run killed while it began
    return results / datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")


def plan(todo: Sequence[Step], every: Sequence[Step], out: Path, seconds: float) -> str:
    """The steps in order, each with the seconds that it is expected to take and that it gets if it starts now; what it
    leaves goes to the others."""
    records = journal.read(out / "journal.jsonl")
    known = list(journal.outcomes(records).values())
    lines = [f"folder: {out}", f"finished before: {known.count('passed')} passed, {known.count('failed')} failed"]
    lines.append(f"{'part':<9} {'step':<48} {'expected':>8} {'given':>6}")
    for step in [*(step for step in every if step not in todo), *todo]:
        given = "done"
        for group in groups(todo):
            if step in group:
                given = f"{time_for(group, todo, seconds):.0f} s"
        lines.append(f"{step.part:<9} {step.name:<48} {step.seconds:>6.0f} s {given:>6}")
    for group in groups(todo):
        if len(group) > 1:
            name = group[0].together
            lines.append(f"{name}: {len(group)} steps, {WORKERS} at a time, {expected(group):.0f} s expected together")
    total = sum(map(expected, groups(todo)))
    return "\n".join(
        [*lines, f"in all {total:.0f} s expected, {seconds:.0f} s given; {REPORT_LIMIT:.0f} s for the report"]
    )


def left_out(every: Sequence[Step]) -> list[str]:
    """A line for each package that is missing."""
    missing: dict[str, list[str]] = {}
    for step in every:
        for package in step.missing():
            missing.setdefault(package, []).append(step.name)
    return [f"{package} is not installed, so these are left out: {', '.join(of)}" for package, of in missing.items()]


def report_of(out: Path) -> Step:
    command = [sys.executable, "-m", "bench.report", str(out / "journal.jsonl"), "--out", str(out)]
    return Step("report", lambda limit: command, 1.0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="folder, default: the unfinished one of this commit and GPU")
    parser.add_argument("--only", choices=PARTS, action="append", help="run this part (may be repeated)")
    parser.add_argument("--plan", action="store_true", help="print what would run, and run nothing")
    parser.add_argument("--fresh", action="store_true", help="start in a new folder")
    parser.add_argument("--limit", type=float, default=LIMIT, metavar="SECONDS", help=f"default {LIMIT:.0f}")
    parser.add_argument("--peer-dle", metavar="PATH", help="checkout of NVIDIA's DeepLearningExamples")
    options = parser.parse_args(arguments)
    out = (options.out or folder_for(environment.RESULTS, options.fresh)).resolve()
    every = steps(out, options.peer_dle, options.only or PARTS)
    absent = left_out(every)
    every = [step for step in every if not step.missing()]
    todo, seconds = unfinished(out, every), options.limit - REPORT_LIMIT
    for line in absent:
        print(f"gpu: {line}", flush=True)
    if options.plan:
        print(plan(todo, every, out, seconds))
        return 0
    if not environment.has_gpu():
        print("gpu: PyTorch finds no CUDA GPU: use `make test` and `make bench`", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    (out / "identity.json").write_text(json.dumps(identity()) + "\n", encoding="utf-8")
    deadline = time.monotonic() + seconds
    codes = run_all(todo, out, deadline)
    codes |= run_all([report_of(out)], out, time.monotonic() + REPORT_LIMIT + GRACE)
    failed = [name for name, code in codes.items() if code]
    print(f"gpu: {out}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
