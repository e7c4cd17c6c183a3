"""The steps of `make gpu`, in order of worth, and the time that each is expected to take."""

import importlib.util
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from . import environment

GRACE = 10.0  # seconds for an interrupted step to stop

TESTS, KERNELS, PIPELINE, TRAINING = PARTS = ("tests", "kernels", "pipeline", "training")

SECONDS_FILE = Path(__file__).parent / "step_seconds.json"
"""{step: seconds}, written by bench.publish from a run; predicted before the first one."""

BENCHMARKS = {
    PIPELINE: [
        ("test_bench_synthesizer", ""),
        ("test_bench_decode_loop", ""),
        ("test_bench_waveglow", "inference"),
        ("test_bench_accelerate", ""),
        ("test_bench_serve", ""),
    ],
    TRAINING: [
        ("test_bench_train_step", "waveglow"),
        ("test_bench_train_step", "tacotron2"),
        ("test_bench_teacher_forced_loop", ""),
        ("test_bench_waveglow", "train"),
        ("test_bench_loader", ""),
    ],
}
"""(file, its benchmarks' common word) of whole models; the other files measure single operations."""

TUNE_COMPILERS = 4
"""Processes that compile the candidates of `bench.tune`."""

COMPILED = "fastglow or compile"
"""The implementations that have something to compile, as pytest's -k."""

NEEDS = {
    "tests-": ("hypothesis",),
    "tests-checkpoint-": ("safetensors",),
    "tests-engine-": ("safetensors", "tqdm"),
    "test_bench_": ("pytest_benchmark",),
    "test_bench_synthesizer": ("safetensors", "tqdm"),
    "test_bench_serve": ("safetensors", "soxr", "starlette", "uvicorn", "prometheus_client"),
}
"""Packages by the first letters of a step's name, besides torch, Triton, NumPy and pytest."""


@dataclass(frozen=True)
class Step:
    """
    Attributes:
        name: also names its log.
        command: seconds allowed -> command line.
        seconds: expected; predicted for a step alone, or measured beside its group. Steps share the time in proportion.
        part: one of PARTS.
        together: neighbours with the same word run at the same time.
        journal: gets its results; default: the run's journal.
        prepares: the step that takes less time after this one, which is then not tried twice.
        needs: packages without which it cannot run.
    """

    name: str
    command: Callable[[float], list[str]]
    seconds: float
    part: str = TESTS
    together: str = ""
    journal: Path | None = None
    prepares: str = ""
    needs: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def steps(out: Path, peer_dle: str | None, parts: Sequence[str] = PARTS) -> list[Step]:
    """The steps before the report, in order: tests, compilation for the benchmarks, benchmarks, tuning. Each file has
    its own process: a kernel that breaks the CUDA context then affects that file only."""
    models = {stem for files in BENCHMARKS.values() for stem, _ in files}
    single = sorted({path.stem for path in (environment.ROOT / "bench").glob("test_bench_*.py")} - models)
    benchmarks = [(stem, "", KERNELS) for stem in single]
    benchmarks += [(stem, word, part) for part, files in BENCHMARKS.items() for stem, word in files]
    # A new machine has neither compiled kernels nor this journal.
    compiled = environment.kernel_cache() / f"fastglow-{environment.key()}.jsonl"
    everything = [
        *(_test(out, file) for file in gpu_tests()),
        *(_compilation(compiled, *benchmark) for benchmark in benchmarks),
        *(_compilation_for_tuning(compiled, i) for i in range(TUNE_COMPILERS)),
        *(_benchmark(out, *benchmark, peer_dle) for benchmark in benchmarks),
        # Its configurations take effect in the next run: one run measures everything with the same ones.
        Step("tune", lambda limit: [sys.executable, "-m", "bench.tune"], expected("tune"), KERNELS),
    ]
    return [step for step in everything if step.part in parts]


def gpu_tests() -> list[Path]:
    """The files with tests marked `gpu`, the kernels' first."""
    files = sorted((environment.ROOT / "tests").rglob("test_*.py"))
    found = [path for path in files if "mark.gpu" in path.read_text(encoding="utf-8") and path.parent.name != "bench"]
    return sorted(found, key=lambda path: (path.parent.name != "kernels", path.stem == "test_sanitizer"))


def expected(name: str) -> float:
    """Seconds of a step; for one that the file lacks, the median of its kind."""
    known = _known_seconds()
    of_kind = [seconds for other, seconds in known.items() if _kind(other) == _kind(name)]
    return known.get(name) or statistics.median(of_kind or known.values())


def _kind(name: str) -> str:
    """'tests', 'test' (a benchmark), 'compile' or 'tune'."""
    return name.replace("_", "-").split("-")[0]


@lru_cache
def _known_seconds() -> Mapping[str, float]:
    return json.loads(SECONDS_FILE.read_text(encoding="utf-8"))


def _test(out: Path, file: Path) -> Step:
    path = file.relative_to(environment.ROOT)
    name = "-".join(path.with_suffix("").parts)
    command = [*_pytest(out / "journal.jsonl"), "-m", "gpu", "--durations=5", str(path)]
    return Step(name, lambda limit: command, expected(name), TESTS, "tests", needs=_needs(name))


def _benchmark(out: Path, stem: str, word: str, part: str, peer_dle: str | None) -> Step:
    name = _name(stem, word)
    chosen = ["-k", word] if word else []
    peer = [f"--peer-dle={Path(peer_dle).resolve()}"] if peer_dle else []

    def command(limit: float) -> list[str]:
        late = f"--time-limit={max(limit - 2 * GRACE, 1):.0f}"
        return [*_pytest(out / "journal.jsonl"), f"bench/{stem}.py", *chosen, late, *peer]

    return Step(name, command, expected(name), part, needs=_needs(name))


def _compilation(journal: Path, stem: str, word: str, part: str) -> Step:
    """Runs and verifies each benchmark once, untimed: its kernels are then in the caches of Triton and PyTorch."""
    of = _name(stem, word)
    chosen = f"{word} and ({COMPILED})" if word else COMPILED
    command = [*_pytest(journal), f"bench/{stem}.py", "--benchmark-disable", "-k", chosen]
    name = f"compile-{of}"
    return Step(name, lambda limit: command, expected(name), part, "compile", journal, of, _needs(of))


def _compilation_for_tuning(journal: Path, i: int) -> Step:
    name = f"compile-tune-{i + 1}"
    command = [sys.executable, "-m", "bench.tune", f"--compile={i + 1}/{TUNE_COMPILERS}"]
    return Step(name, lambda limit: command, expected(name), KERNELS, "compile", journal, "tune")


def _pytest(journal: Path) -> list[str]:
    return [sys.executable, "-m", "pytest", "-p", "bench.journal", f"--journal={journal}"]


def _name(stem: str, word: str) -> str:
    return f"{stem}-{word}" if word else stem


def _needs(name: str) -> tuple[str, ...]:
    return tuple(package for start, packages in NEEDS.items() if name.startswith(start) for package in packages)
