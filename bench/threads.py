"""Times speech and training on a loaded CPU for different waiting modes of PyTorch's threads.

Each computation runs in its own process, with and without busy processes, under fastglow's thread settings and under
settings a user could choose. The settings alternate, so that other load affects all of them equally. Run
`python -m bench.threads`.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import environment

FASTGLOW = "fastglow"
SETTINGS: dict[str, dict[str, str]] = {
    FASTGLOW: {},
    "asleep": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "spinning": {"GOMP_SPINCOUNT": "300000"},  # libgomp's default
}
TARGET = 2.0  # fastglow's time over the best setting's

# Ends when its parent ends, even if that crashes.
BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(100_000):
        pass
"""
SPEAK = """
import time
{first}
import fastglow.voices
synthesizer = fastglow.Synthesizer.from_voice(
    fastglow.voices.DEFAULT_VOICE, "cpu", vocoder="{vocoder}", waveglow="{folder}/waveglow.safetensors"
)
started = time.perf_counter()
synthesizer.synthesize("Hello there, how are you today?", seed=1)
print(time.perf_counter() - started)
"""
COMMAND = """
import contextlib, io, json
from fastglow.cli import main
with contextlib.redirect_stdout(io.StringIO()) as report:
    code = main(["synth", "Hello there, how are you today?", "-o", "{folder}/speech.wav", "--seed", "1", "--device",
                 "cpu", "--vocoder", "{vocoder}", "--waveglow", "{folder}/waveglow.safetensors", "--json"])
assert code == 0
print(json.loads(report.getvalue())["compute_seconds"])
"""
TRAIN = """
import tempfile, time
from fastglow.train.config import Tacotron2TrainConfig
from fastglow.train.loop import train
from fastglow.models import Tacotron2Config
with tempfile.TemporaryDirectory(dir="{folder}") as out:
    config = Tacotron2TrainConfig(data="{folder}/prepared", out=out, batch_size=4, max_iterations=3, tensorboard=False,
                                  device="cpu", epochs_per_validation=1000)
    model = Tacotron2Config(symbols_embedding_dim=128, encoder_embedding_dim=128, attention_rnn_dim=256,
                            decoder_rnn_dim=256, prenet_dim=64, postnet_embedding_dim=128, n_frames_per_step=3)
    started = time.perf_counter()
    train("tacotron2", config, model, progress=False)
    print(time.perf_counter() - started)
"""
WORK = {
    "command, griffin-lim": COMMAND.replace("{vocoder}", "griffin-lim"),
    "command, waveglow": COMMAND.replace("{vocoder}", "waveglow"),
    "library": SPEAK.replace("{first}", "").replace("{vocoder}", "griffin-lim"),
    "library, torch loaded before": SPEAK.replace("{first}", "import torch").replace("{vocoder}", "griffin-lim"),
    "library, torch loaded before, waveglow": SPEAK.replace("{first}", "import torch").replace("{vocoder}", "waveglow"),
    "training": TRAIN,
}


def seconds(code: str, setting: dict[str, str], limit: float) -> float:
    """The time that a process running `code` prints; at most `limit`."""
    chosen = {name for values in SETTINGS.values() for name in values}
    inherited = {name: value for name, value in os.environ.items() if name not in chosen}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=environment.ROOT,
            env={**inherited, **setting},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=limit,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return limit
    return float(done.stdout.split()[-1])


@contextmanager
def busy(n: int) -> Iterator[None]:
    """Runs `n` busy processes."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(n)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(code: str, settings: Sequence[str], rounds: int, limit: float) -> dict[str, float]:
    """Median seconds by setting, over rounds that run each setting once."""
    taken: dict[str, list[float]] = {name: [] for name in settings}
    for _ in range(rounds):
        for name in settings:
            # After one timeout, further rounds add nothing.
            again = not taken[name] or max(taken[name]) < limit
            taken[name].append(seconds(code, SETTINGS[name], limit) if again else limit)
    return {name: statistics.median(values) for name, values in taken.items()}


def save_waveglow(folder: Path) -> None:
    """Random weights, in the size of a small voice's: how long it takes does not depend on them."""
    from fastglow import WaveGlow, save_checkpoint

    layers = {"n_layers": 7, "n_channels": 64, "kernel_size": 3}
    model = WaveGlow(n_flows=6, n_early_every=3, WN_config=layers, upsample_kernel_size=512)
    save_checkpoint(model, folder / "waveglow.safetensors")


def prepare_clips(folder: Path) -> None:
    from fastglow.train.prepare import prepare

    prepare(environment.ROOT / "tests" / "data" / "clips", folder / "prepared", progress=False, workers=1)


def main(arguments: list[str] | None = None) -> int:
    """Prints a table; returns 1 if fastglow's setting takes more than TARGET times the best one in any row."""
    parser = argparse.ArgumentParser(prog="python -m bench.threads", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="runs per setting, default 5")
    parser.add_argument(
        "--busy", type=int, nargs="+", default=[0, 1, 2], help="numbers of busy processes, default 0 1 2"
    )
    parser.add_argument("--limit", type=float, default=60, help="timeout of a run in seconds, default 60")
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK), help="default: all", metavar="WORK")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="default: all")
    options = parser.parse_args(arguments)
    settings = list(dict.fromkeys([FASTGLOW, *options.settings]))
    print(f"seconds, medians of {options.rounds}; {os.cpu_count()} cores, torch {environment.describe()['torch']}\n")
    print("| work | busy processes |", " | ".join(settings), "| fastglow / best |")
    print("|---|" + "---|" * (len(settings) + 2))
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        prepare_clips(Path(folder))
        save_waveglow(Path(folder))
        for name in options.work:
            for n in options.busy:
                with busy(n):
                    code = WORK[name].replace("{folder}", folder)
                    taken = measure(code, settings, options.rounds, options.limit)
                ratio = taken[FASTGLOW] / min(taken.values())
                worst = max(worst, ratio)
                numbers = (f"> {s:.0f}" if s >= options.limit else f"{s:.2f}" for s in taken.values())
                print(f"| {name} | {n} |", " | ".join(numbers), f"| {ratio:.2f} |", flush=True)
    return int(worst > TARGET)


if __name__ == "__main__":
    sys.exit(main())
