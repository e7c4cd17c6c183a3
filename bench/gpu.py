"""All GPU tests and benchmarks within ten minutes: `make gpu`.

Runs the tests marked `gpu`, the benchmark suite, and the report. Each benchmark file runs in its own process, so that a
kernel that breaks the CUDA context stops no other file. A step that fails or times out does not stop the rest. Logs,
results and steps.json (exit codes) go to bench/results/<time>; the exit code is 1 if any step failed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from . import environment

LIMIT = 580.0  # seconds, in total
REPORT_LIMIT = 30.0
GRACE = 10.0  # for an interrupted step to write its results

TESTS_SHARE, DEFAULT_SHARE = 10.0, 2.0
SHARES = {
    "test_bench_decode_loop": 10.0,
    "test_bench_gated_activation": 2.5,
    "test_bench_teacher_forced_loop": 6.0,
    "test_bench_waveglow": 9.0,
}
"""Relative time per step. torch.compile takes longest, especially for a whole model; then the decoder loops, in which
the other implementations launch every operation of every frame."""


@dataclass(frozen=True)
class Step:
    """
    Attributes:
        name: also names its log.
        command: seconds allowed -> command line.
        share: weight among the steps still to run; later steps get the time that a step does not use.
    """

    name: str
    command: Callable[[float], list[str]]
    share: float


def steps(out: Path, peer_dle: str | None) -> list[Step]:
    """The steps before the report, in order."""
    pytest = [sys.executable, "-m", "pytest"]
    # By file: collecting the others may need packages that a GPU machine lacks.
    gpu_tests = [
        str(path.relative_to(environment.ROOT))
        for path in sorted((environment.ROOT / "tests").rglob("test_*.py"))
        if "mark.gpu" in path.read_text(encoding="utf-8")
    ]
    options = ["-m", "gpu", "--durations=15", "--continue-on-collection-errors", f"--junitxml={out / 'tests.xml'}"]
    tests = [*pytest, *options, *gpu_tests]

    def benchmark(file: Path) -> Callable[[float], list[str]]:
        peer = [f"--peer-dle={Path(peer_dle).resolve()}"] if peer_dle else []
        json = f"--benchmark-json={out / file.stem}.json"
        return lambda limit: [*pytest, str(file), json, f"--time-limit={limit - 2 * GRACE:.0f}", *peer]

    files = sorted((environment.ROOT / "bench").glob("test_bench_*.py"))
    suite = [Step(file.stem, benchmark(file), SHARES.get(file.stem, DEFAULT_SHARE)) for file in files]
    return [Step("tests", lambda limit: tests, TESTS_SHARE), *suite]


def run(step: Step, out: Path, limit: float) -> int:
    """Runs a step, output to its log; interrupts it when its time is up. Returns its exit code."""
    with open(out / f"{step.name}.log", "wb") as log:
        process = subprocess.Popen(
            step.command(limit),
            cwd=environment.ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A background shell job ignores SIGINT, and its children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            return process.wait(limit - GRACE)
        except subprocess.TimeoutExpired:
            log.write(f"\nstopped after {limit - GRACE:.0f} s\n".encode())
            log.flush()
            os.killpg(process.pid, signal.SIGINT)  # pytest writes its results
        try:
            return process.wait(GRACE) or 1
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return 1


def run_all(todo: Sequence[Step], out: Path, deadline: float) -> dict[str, int]:
    """Exit codes by step; `deadline` in `time.monotonic()` seconds."""
    codes = {}
    for i, step in enumerate(todo):
        left = deadline - time.monotonic()
        limit = left * step.share / sum(other.share for other in todo[i:])
        start = time.monotonic()
        codes[step.name] = run(step, out, limit)
        took, verdict = time.monotonic() - start, "ok" if codes[step.name] == 0 else f"exit {codes[step.name]}"
        print(f"{step.name}: {verdict}, {took:.0f} of {limit:.0f} s", flush=True)
    return codes


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="folder, default bench/results/<time>")
    parser.add_argument("--peer-dle", metavar="PATH", help="checkout of NVIDIA's DeepLearningExamples")
    options = parser.parse_args(arguments)
    if not environment.has_gpu():
        print("gpu: PyTorch finds no CUDA GPU: use `make test` and `make bench`", file=sys.stderr)
        return 2
    out = options.out or environment.RESULTS / datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LIMIT - REPORT_LIMIT
    codes = run_all(steps(out, options.peer_dle), out, deadline)
    measured = [str(path) for path in sorted(out.glob("test_bench_*.json")) if path.stat().st_size]
    report = [sys.executable, "-m", "bench.report", *measured, "--out", str(out)]
    codes |= run_all([Step("report", lambda limit: report, 1.0)], out, time.monotonic() + REPORT_LIMIT + GRACE)
    (out / "steps.json").write_text(json.dumps(codes, indent=1) + "\n", encoding="utf-8")
    failed = [name for name, code in codes.items() if code]
    print(f"gpu: {out}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
