"""Training steps on one GPU, from a report or from the targets."""

from dataclasses import dataclass

from fastglow.errors import FastglowError

from ..precision import FP16
from ..results import Row, Run
from ..targets import STATED_FOR
from ..test_bench_train_step import Tacotron2Step, WaveGlowStep
from ..training import ADAM_BYTES
from ..workload import FASTGLOW, TRAIN_STEP
from . import gradients
from .timeline import StepTime

PARAMETER_BYTES = 4


@dataclass(frozen=True)
class Step:
    """
    Attributes:
        name: of the benchmark.
        model: whose gradients it has, a key of `gradients.load`.
        unit: 'samples' or 'frames'.
        batch: items.
        units: samples or frames of the batch, without padding.
        seconds: of the step.
        copy_rate: of the machine, bytes per second.
    """

    name: str
    model: str
    unit: str
    batch: int
    units: float
    seconds: float
    copy_rate: float

    def profile(self) -> list[gradients.Gradient]:
        return gradients.load(self.model)

    def parts(self, accumulate: int = 1) -> StepTime:
        """Memory bounds Adam; a backward pass takes twice as long as a forward pass.

        Args:
            accumulate: passes in a step.
        """
        parameters = sum(gradient.size for gradient in self.profile()) / PARAMETER_BYTES
        optimizer = min(ADAM_BYTES * parameters / self.copy_rate, self.seconds)
        forward = (self.seconds - optimizer) / 3
        return StepTime(forward + (accumulate - 1) * 3 * forward, 2 * forward, optimizer)


def measured(run: Run) -> list[Step]:
    """fastglow's training steps in a report.

    Raises:
        FastglowError: it has none.
    """
    rate = run.machine["ceilings"]["bytes_per_second"]
    rows = [row for row in run.rows if row.implementation == FASTGLOW and row.info["direction"] == TRAIN_STEP]
    steps = [_step(row, rate) for row in rows if "small" not in row.info["case"]]
    if not steps:
        raise FastglowError("the results have no training step: make them with `make bench ARGS='-k train_step'`")
    return steps


def _step(row: Row, rate: float) -> Step:
    unit = "samples" if row.info["samples_per_second"] else "frames"
    channels = row.info["case"].split("-")[1] if row.info["op"] == "waveglow" else ""
    model = "-".join(filter(None, (row.info["op"], channels)))
    units = row.info[f"{unit}_per_second"] * row.seconds
    return Step(row.name, model, unit, row.info["batch"], units, row.seconds, rate)


def of_targets() -> list[Step]:
    """Steps that just meet the targets, which are stated for an H200."""
    waveglow, tacotron2 = WaveGlowStep("train-512", FP16, batch=10), Tacotron2Step("train", FP16, batch=128)
    samples, frames = waveglow.samples(TRAIN_STEP), tacotron2.frames(TRAIN_STEP)
    rates = waveglow.targets(TRAIN_STEP)["samples_per_second"], tacotron2.targets(TRAIN_STEP)["frames_per_second"]
    memory = STATED_FOR["memory"]
    return [
        Step("waveglow/train-512-fp16", "waveglow-512", "samples", waveglow.batch, samples, samples / rates[0], memory),
        Step("tacotron2/train-fp16", "tacotron2", "frames", tacotron2.batch, frames, frames / rates[1], memory),
    ]
