"""Training steps of both models: forward, loss, backward, clipping, Adam, in every precision.

Batches and options are those of NVIDIA's scripts for one A100, DGXA100_{tacotron2,waveglow}_{AMP,TF32}_1NGPU_train.sh.
bf16, which they lack, has the batch of fp16, and float32 without TF32 that of TF32. On a CPU bf16 is timed in turn with
float32, with the published widths and smaller batches.
"""

import copy
from dataclasses import dataclass, replace
from typing import TypeVar

import pytest
import torch
from torch import nn

from fastglow import Tacotron2, WaveGlow
from fastglow.kernels.cpu import fast_dtype

from . import tacotron2_model, waveglow_model
from .environment import has_gpu
from .precision import BF16, FP16, OFF, TF32, Precision
from .training import Batch, Recipe, Trainee, TrainStep
from .workload import COMPILE, FASTGLOW, ORDINARY, Implementation, cases, on_this_machine

CHECKED_FRAMES = 24
CHECKED_SAMPLES = 500  # of each segment, on a CPU

LONGEST, SHORTEST = (180, 860), (20, 272)
"""Symbols and frames of an item. Evenly spread between, they have LJSpeech's means: 100 and 566, of at most 870."""


@dataclass(frozen=True)
class Tacotron2Step(TrainStep):
    """
    Attributes:
        longest, shortest: (symbols, frames); items lie evenly between.
    """

    longest: tuple[int, int] = LONGEST
    shortest: tuple[int, int] = SHORTEST

    op = "tacotron2"
    recipe = Recipe(learning_rate=1e-3, weight_decay=1e-6, grad_clip_thresh=1.0)

    @property
    def model(self) -> Tacotron2:
        return tacotron2_model.new_model(self.small)

    def supports(self, implementation: str) -> bool:
        # Its loop of hundreds of frames would be unrolled.
        return implementation != COMPILE and super().supports(implementation)

    def shapes(self) -> dict[str, list[int]]:
        (text, _, mels, *_), _ = self.new_batch(checked=False)
        return {"text": list(text.shape), "mels": list(mels.shape)}

    def flops(self) -> int:
        return tacotron2_model.flops(self.model, self.batch, *self.longest)

    def frames(self, direction: str) -> int:
        """Without padding, as NVIDIA counts them."""
        return int(self._lengths()[1].sum())

    def targets(self, direction: str) -> dict[str, float]:
        return {"frames_per_second": 1e6} if self.precision == FP16 and not self.small else {}

    def new_batch(self, checked: bool) -> Batch:
        text_lengths, mel_lengths = self._lengths()
        return tacotron2_model.new_batch(
            self.model, text_lengths, mel_lengths.clamp(max=CHECKED_FRAMES) if checked else mel_lengths
        )

    def trainee(self, implementation: Implementation, model: nn.Module, dropout: bool) -> Trainee:
        assert isinstance(model, Tacotron2)
        return tacotron2_model.trainee(implementation, model, dropout)

    def exact(self) -> Trainee:
        return tacotron2_model.plain_trainee(copy.deepcopy(self.model).double())

    def _lengths(self) -> list[torch.Tensor]:
        ends = zip(self.longest, self.shortest, strict=True)
        return [torch.linspace(longest, shortest, self.batch).long() for longest, shortest in ends]


@dataclass(frozen=True)
class WaveGlowStep(TrainStep):
    """
    Attributes:
        channels: of the coupling networks.
        audio_length: samples of a segment.
        graph: a CUDA graph of the whole step, as `--cuda-graph` has it.
        varies: fastglow saves memory.
    """

    channels: int = 512
    audio_length: int = 8000
    graph: bool = False
    varies: bool = False

    op = "waveglow"
    recipe = Recipe(learning_rate=1e-4, weight_decay=0.0, grad_clip_thresh=65504.0)

    @property
    def model(self) -> WaveGlow:
        sizes = waveglow_model.SMALL if self.small else {}
        return waveglow_model.new_model(self.channels, **sizes)

    @property
    def name(self) -> str:
        return f"{super().name}-graph" if self.graph else super().name

    def capturable(self, direction: str) -> bool:
        return self.graph

    def supports(self, implementation: str) -> bool:
        if self.graph:
            return implementation == FASTGLOW
        # Only in one precision: compiling takes minutes.
        compiles = self.precision == FP16 and not self.varies
        return (implementation != COMPILE or compiles) and super().supports(implementation)

    def shapes(self) -> dict[str, list[int]]:
        (mel, audio), _ = self.new_batch(checked=False)
        return {"mel": list(mel.shape), "audio": list(audio.shape)}

    def flops(self) -> int:
        groups = self.samples("") // self.model.config.n_group
        return groups * waveglow_model.flops_per_group(self.model.config, folded=False)

    def samples(self, direction: str) -> int:
        return self.batch * self.audio_length

    def targets(self, direction: str) -> dict[str, float]:
        if self.small:
            return {}
        if self.varies:
            return {"activations_of_peer": 0.25, "times_ordinary": 1.35}
        if self.precision != FP16 or self.channels != 512:
            return {}
        return {"samples_per_second": 1.5e6, "percent_of_bfloat16_ceiling": 40}

    def new_batch(self, checked: bool) -> Batch:
        # On a CPU float64 takes long.
        n = CHECKED_SAMPLES if checked and not has_gpu() else self.audio_length
        return waveglow_model.new_batch(self.model, self.batch, n)

    def trainee(self, implementation: Implementation, model: nn.Module, dropout: bool) -> Trainee:
        assert isinstance(model, WaveGlow)
        model.memory_saving = self.varies and implementation.name != ORDINARY
        return waveglow_model.trainee(implementation, model)

    def exact(self) -> Trainee:
        return waveglow_model.plain_trainee(copy.deepcopy(self.model).to(waveglow_model.EXACT))


StepT = TypeVar("StepT", bound=TrainStep)


def in_precisions(step: StepT, *precisions: Precision) -> list[StepT]:
    return [replace(step, precision=precision) for precision in precisions]


def on_a_cpu(small: StepT, wide: StepT) -> list[StepT]:
    """`small` to verify, `wide` to time."""
    return in_precisions(small, OFF, TF32, BF16, FP16) + in_precisions(
        wide, BF16 if fast_dtype() == torch.bfloat16 else OFF
    )


def tacotron2_steps() -> list[Tacotron2Step]:
    published = Tacotron2Step("train", OFF, batch=128)
    small = replace(published, case="train-small", batch=3, small=True, longest=(9, 14), shortest=(5, 8))
    wide = replace(published, batch=8, longest=(60, 120), shortest=(20, 60))
    return on_this_machine(gpu=in_precisions(published, FP16, BF16, TF32, OFF), cpu=on_a_cpu(small, wide))


def waveglow_steps() -> list[WaveGlowStep]:
    published = WaveGlowStep("train-512", OFF, batch=10)
    half = replace(published, case="train-256", channels=256)
    small = replace(published, case="train-small", batch=2, small=True, channels=16, audio_length=1000)
    wide = replace(half, batch=2, audio_length=4000)

    def saving(step: WaveGlowStep) -> WaveGlowStep:
        return replace(step, case=f"{step.case}-saving", varies=True)

    return on_this_machine(
        gpu=[
            *in_precisions(published, FP16, BF16),
            *in_precisions(replace(published, graph=True), FP16, BF16),
            *in_precisions(replace(published, batch=4), TF32, OFF),
            *in_precisions(half, FP16),
            *in_precisions(saving(published), FP16, BF16),
            *in_precisions(saving(half), FP16),
        ],
        cpu=on_a_cpu(small, wide) + on_a_cpu(saving(small), saving(wide)),
    )


TACOTRON2, WAVEGLOW = tacotron2_steps(), waveglow_steps()
WORKLOADS = [*TACOTRON2, *WAVEGLOW]


@pytest.mark.parametrize("workload, direction", cases(TACOTRON2))
def test_tacotron2_step(measure, workload, direction, implementation):
    measure(workload, direction, implementation)


@pytest.mark.parametrize("workload, direction", cases(WAVEGLOW))
def test_waveglow_step(measure, workload, direction, implementation):
    measure(workload, direction, implementation)
