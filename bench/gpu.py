"""All GPU tests and benchmarks within ten minutes: `make gpu`.

Runs the tests marked `gpu`, the benchmarks, the tuning and the report. Each file runs in its own process, so that a
kernel that breaks the CUDA context stops no other file. Every finished test and benchmark is in journal.jsonl at once,
and a later run goes on where this one stopped. The exit code is 1 if any step failed.
"""

import argparse
import ctypes
import importlib.util
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
from pathlib import Path

from . import environment, journal
from .steps import GRACE, PACKAGES, PARTS, Step, steps

LIMIT = 580.0  # seconds, in total
REPORT_LIMIT = 30.0
WORKERS = max(1, min(6, (os.cpu_count() or 1) // 2))
"""Test files at a time: compiling their kernels one by one takes minutes. Benchmarks run alone."""
SHORTEST = 60.0  # for a step, while time is left
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


def time_for(group: Sequence[Step], todo: Sequence[Step], left: float) -> float:
    """The share of `group` in the time left, but enough to import PyTorch and compile."""
    shares = [sum(step.share for step in some) for some in (group, todo)]
    return min(left, max(SHORTEST, left * shares[0] / shares[1]))


def run_all(todo: Sequence[Step], out: Path, deadline: float) -> dict[str, int]:
    """Exit codes by step, also in the journal; `deadline` in `time.monotonic()` seconds."""
    codes: dict[str, int] = {}
    i = 0
    while i < len(todo):
        n = next((n for n, step in enumerate(todo[i:]) if not step.together), len(todo) - i) or 1
        group = todo[i : i + n]
        end = time.monotonic() + time_for(group, todo[i:], deadline - time.monotonic())
        if n == 1:
            codes[group[0].name] = _run_until(group[0], out, end)
        else:
            with ThreadPoolExecutor(WORKERS) as pool:
                found = pool.map(partial(_run_until, out=out, end=end), group)
                codes |= zip([step.name for step in group], found, strict=True)
        i += n
    return codes


def _run_until(step: Step, out: Path, end: float) -> int:
    start = time.monotonic()
    limit = end - start
    if limit < 2 * GRACE:
        print(f"{step.name}: no time left, run again", flush=True)
        return 1
    code = run(step, out, limit)
    took, verdict = time.monotonic() - start, "ok" if code == 0 else f"exit {code}"
    journal.append(out / "journal.jsonl", {"step": step.name, "code": code, "seconds": round(took, 1)})
    print(f"{step.name}: {verdict}, {took:.0f} of {limit:.0f} s", flush=True)
    return code


def unfinished(out: Path, todo: Sequence[Step]) -> list[Step]:
    """The steps that have not ended well in this folder."""
    codes = {record["step"]: record["code"] for record in journal.read(out / "journal.jsonl") if "step" in record}
    return [step for step in todo if codes.get(step.name) != 0]


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
    """The steps in order, each with its time if it starts now; what it leaves goes to the others."""
    records = journal.read(out / "journal.jsonl")
    known = list(journal.outcomes(records).values())
    lines = [f"folder: {out}", f"finished before: {known.count('passed')} passed, {known.count('failed')} failed"]
    waiting = {step.name for step in todo}
    for step in every:
        group = [other for other in todo if other.together] if step.together else [step]
        time_given = f"{time_for(group, todo, seconds):.0f} s" if step.name in waiting else "done"
        lines.append(f"{step.part:<9} {step.name:<48} {time_given:>6}")
    if any(step.together for step in todo):
        lines.append(f"tests run {WORKERS} files at a time, within their time together")
    lines += [f"missing: {name}, for {what}" for name, what in missing_packages().items()]
    return "\n".join([*lines, f"in all {seconds:.0f} s, and {REPORT_LIMIT:.0f} s for the report"])


def missing_packages() -> dict[str, str]:
    return {name: what for name, what in PACKAGES.items() if importlib.util.find_spec(name) is None}


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
    todo, seconds = unfinished(out, every), options.limit - REPORT_LIMIT
    if options.plan:
        print(plan(todo, every, out, seconds))
        return 0
    if not environment.has_gpu():
        print("gpu: PyTorch finds no CUDA GPU: use `make test` and `make bench`", file=sys.stderr)
        return 2
    for name, what in missing_packages().items():
        print(f"gpu: {name} is not installed, needed for {what}", flush=True)
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
