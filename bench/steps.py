"""The steps of `make gpu`, in order of worth, and their shares of the time."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import environment

GRACE = 10.0  # seconds for an interrupted step to stop

TESTS, KERNELS, PIPELINE, TRAINING = PARTS = ("tests", "kernels", "pipeline", "training")

DEFAULT_SHARE = 2.0
SHARES = {
    "tune": 8.0,
    "test_bench_decode_loop": 10.0,
    "test_bench_gated_activation": 2.5,
    "test_bench_teacher_forced_loop": 6.0,
    "test_bench_waveglow-inference": 4.0,
    "test_bench_waveglow-train": 5.0,
    "test_decode_loop_gpu": 5.0,
    "test_sanitizer": 3.0,
}
"""Relative time per step. torch.compile takes longest, especially for a whole model; then the decoder loops, in which
the other implementations launch every operation of every frame."""
TESTS_SHARE = 0.5

BENCHMARKS = {
    PIPELINE: [("test_bench_decode_loop", ""), ("test_bench_waveglow", "inference")],
    TRAINING: [("test_bench_teacher_forced_loop", ""), ("test_bench_waveglow", "train")],
}
"""(file, its benchmarks' common word) of whole models; the other files measure single operations."""

PACKAGES = {
    "hypothesis": "all tests",
    "inflect": "tests that speak text",
    "matplotlib": "the roofline plot",
    "pytest_benchmark": "all benchmarks",
    "safetensors": "models and checkpoints",
    "soundfile": "models and audio",
    "soxr": "models and audio",
    "tqdm": "the synthesizer",
    "unidecode": "text and checkpoints",
}
"""What a run imports besides torch, Triton, NumPy and pytest, and what needs it."""


@dataclass(frozen=True)
class Step:
    """
    Attributes:
        name: also names its log.
        command: seconds allowed -> command line.
        share: weight among the steps still to run; later steps get the time that a step does not use.
        part: one of PARTS.
        together: runs at the same time as its neighbours that say so too.
    """

    name: str
    command: Callable[[float], list[str]]
    share: float
    part: str = TESTS
    together: bool = False


def steps(out: Path, peer_dle: str | None, parts: Sequence[str] = PARTS) -> list[Step]:
    """The steps before the report, in order. Each file has its own process: a missing package, or a kernel that breaks
    the CUDA context, then affects that file only."""
    pytest = [sys.executable, "-m", "pytest", "-p", "bench.journal", f"--journal={out / 'journal.jsonl'}"]

    def test(file: Path) -> Step:
        command = [*pytest, "-m", "gpu", "--durations=5", str(file.relative_to(environment.ROOT))]
        share = SHARES.get(file.stem, TESTS_SHARE)
        name = "-".join(file.relative_to(environment.ROOT).with_suffix("").parts)
        return Step(name, lambda limit: command, share, together=True)

    def benchmark(stem: str, word: str, part: str) -> Step:
        name = f"{stem}-{word}" if word else stem
        chosen = ["-k", word] if word else []
        peer = [f"--peer-dle={Path(peer_dle).resolve()}"] if peer_dle else []

        def command(limit: float) -> list[str]:
            return [*pytest, f"bench/{stem}.py", *chosen, f"--time-limit={max(limit - 2 * GRACE, 1):.0f}", *peer]

        return Step(name, command, SHARES.get(name, DEFAULT_SHARE), part)

    models = {stem for files in BENCHMARKS.values() for stem, _ in files}
    single = sorted({path.stem for path in (environment.ROOT / "bench").glob("test_bench_*.py")} - models)
    tune = Step("tune", lambda limit: [sys.executable, "-m", "bench.tune"], SHARES["tune"], KERNELS)
    everything = [
        *(test(file) for file in gpu_tests()),
        *(benchmark(stem, "", KERNELS) for stem in single),
        *(benchmark(stem, word, part) for part, files in BENCHMARKS.items() for stem, word in files),
    ]
    # Its configurations take effect in the next run: one run measures everything with the same ones.
    everything.append(tune)
    return [step for step in everything if step.part in parts]


def gpu_tests() -> list[Path]:
    """The files with tests marked `gpu`, the kernels' first."""
    files = sorted((environment.ROOT / "tests").rglob("test_*.py"))
    found = [path for path in files if "mark.gpu" in path.read_text(encoding="utf-8") and path.parent.name != "bench"]
    return sorted(found, key=lambda path: (path.parent.name != "kernels", path.stem == "test_sanitizer"))
