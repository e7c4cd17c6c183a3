"""The whole WaveGlow at the published shapes: compute-bound.

Training's forward and backward pass as in NVIDIA's DGXA100_waveglow_AMP script: 10 segments of 8000 samples, float16
autocast; test_bench_train_step.py measures its steps. Inference: one utterance of 10 seconds in float16; on a CPU one
of a second, in bfloat16 and float32. The noise is an input, except for NVIDIA's `infer`, which draws it.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastglow import WaveGlow
from fastglow.audio import MelConfig
from fastglow.kernels.cpu import fast_dtype

from . import plain_waveglow, waveglow_model
from .environment import device, has_gpu
from .precision import OFF
from .training import Batch, Trainee
from .waveglow_model import EXACT, SIGMA, SMALL
from .workload import (
    BACKWARD,
    COMPILE,
    FORWARD,
    INFERENCE,
    PEER,
    Cost,
    Implementation,
    Workload,
    cases,
    largest_error,
    launching,
    on_this_machine,
)

HOP = 256  # samples of a mel frame
CHECKED_FRAMES = 8  # on a CPU, where float64 takes long
LOSS_SCALE = 2.0**12  # without it, float16 gradients of a mean over all samples underflow


@dataclass(frozen=True)
class WaveGlowWorkload(Workload):
    """Shared by training and inference. Audio: [batch, audio_length] samples."""

    case: str
    dtype: torch.dtype
    channels: int
    batch: int
    audio_length: int
    layers: int = 8
    flows: int = 12
    early_every: int = 4
    mel_channels: int = 80
    small: bool = False

    op = "waveglow"

    @property
    def model(self) -> WaveGlow:
        return waveglow_model.new_model(self.channels, self.layers, self.flows, self.early_every, self.mel_channels)

    @property
    def exact_model(self) -> WaveGlow:
        return copy.deepcopy(self.model).to(EXACT)

    def supports(self, implementation: str) -> bool:
        return True

    def samples(self, direction: str) -> int:
        return self.batch * self.audio_length

    def parameter_bytes(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters()) * self.dtype.itemsize


class Training(WaveGlowWorkload):
    directions = (FORWARD, BACKWARD)

    def shapes(self) -> dict[str, list[int]]:
        (mel, audio), _ = self._batch()
        return {"mel": list(mel.shape), "audio": list(audio.shape)}

    def cost(self, direction: str) -> Cost:
        """A backward pass costs two forward passes; parameters are read, gradients written."""
        groups = self.samples(direction) // self.model.config.n_group
        passes = {FORWARD: 1, BACKWARD: 2}[direction]
        flops = passes * groups * waveglow_model.flops_per_group(self.model.config, folded=False)
        return Cost(passes * self.parameter_bytes(), flops)

    def call(self, implementation: Implementation, direction: str) -> Callable[[], list[Tensor]]:
        return self._pass(waveglow_model.trainee(implementation, self.model), self._batch(), direction)

    def verify(self, implementation: Implementation, direction: str) -> float:
        batch = self._batch()

        def results(trainee: Trainee, autocast: bool = True) -> list[Tensor]:
            tensors = self._pass(trainee, batch, direction, autocast)()
            if direction == BACKWARD:
                return [torch.cat([gradient.flatten() for gradient in tensors])]
            z, *log_s, log_dets = (tensor.detach() for tensor in tensors)
            return [z, torch.cat([x.flatten() for x in log_s]), log_dets]

        with launching(implementation):
            actual = results(waveglow_model.trainee(implementation, self.model))
        with torch.set_grad_enabled(direction == BACKWARD):
            usual = results(waveglow_model.plain_trainee(self.model))
            with OFF.products():
                exact = results(waveglow_model.plain_trainee(self.exact_model), autocast=False)
        return largest_error(actual, usual, exact, direction)

    def _batch(self) -> Batch:
        return waveglow_model.new_batch(self.model, self.batch, self.audio_length)

    def _autocast(self, on: bool) -> torch.autocast:
        return torch.autocast(device().type, torch.float16, enabled=on and self.dtype == torch.float16)

    def _pass(
        self, trainee: Trainee, batch: Batch, direction: str, autocast: bool = True
    ) -> Callable[[], list[Tensor]]:
        """Forward: [z, *log s, log|det W| of all flows]. Backward: gradients in the order of the parameters' names."""
        if direction == FORWARD:

            def run() -> list[Tensor]:
                with self._autocast(autocast):
                    z, log_s_list, log_det_list = trainee.network(batch.inputs)
                return [z, *log_s_list, torch.stack(log_det_list)]

            return run
        with self._autocast(autocast):
            loss = trainee.loss(batch)
        parameters = [trainee.parameters[name] for name in sorted(trainee.parameters)]
        scale = torch.full_like(loss, LOSS_SCALE)
        return lambda: list(torch.autograd.grad(loss, parameters, scale, retain_graph=True))


class Speaking(WaveGlowWorkload):
    directions = (INFERENCE,)

    def supports(self, implementation: str) -> bool:
        # On a CPU at one width only: compiling takes half a minute.
        return implementation != COMPILE or has_gpu() or self.channels == 256

    def beside(self) -> "Sequence[Speaking]":
        return () if self.small or self.dtype == torch.float32 else (replace(self, dtype=torch.float32),)

    def audio_seconds(self, direction: str) -> float:
        return self.samples(direction) / MelConfig().sampling_rate

    def shapes(self) -> dict[str, list[int]]:
        mel, noise = self._mel_and_noise()
        return {"mel": list(mel.shape), "noise": list(noise.shape)}

    def cost(self, direction: str) -> Cost:
        """FLOPs of the folded model; bytes of the unfolded parameters, which makes no difference here."""
        groups = self.samples(direction) // self.model.config.n_group
        return Cost(self.parameter_bytes(), groups * waveglow_model.flops_per_group(self.model.config, folded=True))

    def targets(self, direction: str) -> dict[str, float]:
        if has_gpu():
            return {"percent_of_bfloat16_ceiling": {512: 45, 256: 35}.get(self.channels, 0)}
        return {} if self.dtype != fast_dtype() or self.small else {"percent_of_ceiling": 60, "times_peer": 3}

    def call(self, implementation: Implementation, direction: str) -> Callable[[], Tensor]:
        mel, noise = self._mel_and_noise()
        return self._speaker(implementation, mel, noise, own_noise=True)

    def verify(self, implementation: Implementation, direction: str) -> float:
        mel, noise, usual, exact = expected(self)
        with launching(implementation):
            actual = self._speaker(implementation, mel, noise)()
        return largest_error([actual], [usual], [exact], INFERENCE)

    def expected(self) -> "Expected":
        mel, noise = self._mel_and_noise(None if has_gpu() or self.small else CHECKED_FRAMES)
        usual = plain_waveglow.Speaker.of(self._in_dtype()).infer(mel, noise, SIGMA)
        with OFF.products():
            exact = plain_waveglow.Speaker.of(self.exact_model).infer(mel.to(EXACT), noise.to(EXACT), SIGMA)
        return Expected(mel, noise, usual, exact)

    def item(self, direction: str, alone: bool) -> Sequence[Tensor]:
        mel, noise = (torch.cat((x, x)) if len(x) == 1 else x for x in self._mel_and_noise())
        n = 1 if alone else len(mel)
        return [self._in_dtype().infer(mel[:n], SIGMA, noise=noise[:n])[:1]]

    def _speaker(
        self, implementation: Implementation, mel: Tensor, noise: Tensor, own_noise: bool = False
    ) -> Callable[[], Tensor]:
        """`own_noise`: NVIDIA's code draws its own noise, as in normal use, instead of taking `noise`."""
        model = self._in_dtype()
        if implementation.name == COMPILE:
            speaker = plain_waveglow.Speaker.of(model)
            run = torch.compile(plain_waveglow.run_layers, dynamic=False)
            return lambda: speaker.infer(mel, noise, SIGMA, run)
        if implementation.name == PEER:
            twin = implementation.nvidia.waveglow_for_inference(model)
            if own_noise:
                return torch.no_grad()(lambda: twin.infer(mel, SIGMA))
            return torch.no_grad()(lambda: twin.infer_onnx(mel, SIGMA * noise, 1.0))
        return lambda: model.infer(mel, SIGMA, noise=noise)

    def _in_dtype(self) -> WaveGlow:
        return copy.deepcopy(self.model).to(self.dtype)

    def _mel_and_noise(self, frames: int | None = None) -> tuple[Tensor, Tensor]:
        """Of `frames` frames; default: of all."""
        config = self.model.config
        frames = frames or self.audio_length // config.upsample_stride
        groups = frames * config.upsample_stride // config.n_group
        mel = torch.randn(self.batch, config.n_mel_channels, frames, device=device(), dtype=self.dtype)
        return mel, torch.randn(self.batch, config.n_group, groups, device=device(), dtype=self.dtype)


class Expected(NamedTuple):
    """What all implementations are verified with."""

    mel: Tensor
    noise: Tensor
    usual: Tensor  # audio of PyTorch's operations in the same dtype
    exact: Tensor


@lru_cache(maxsize=1)
def expected(workload: Speaking) -> Expected:
    return workload.expected()


WORKLOADS = on_this_machine(
    gpu=[
        *(Speaking(f"inference-{n}", torch.float16, n, batch=1, audio_length=860 * HOP) for n in (512, 256)),
        *(Training(f"train-{n}", torch.float16, n, batch=10, audio_length=8000) for n in (512, 256)),
    ],
    cpu=[
        Speaking("inference-small", torch.float32, 16, 1, 5 * HOP, small=True, **SMALL | {"mel_channels": 80}),
        Training("train-small", torch.float32, 16, batch=2, audio_length=1000, small=True, **SMALL),
        *(Speaking(f"inference-{n}", fast_dtype(), n, batch=1, audio_length=86 * HOP) for n in (256, 512)),
    ],
)


@pytest.mark.parametrize("workload, direction", cases(WORKLOADS))
def test_waveglow(measure, workload, direction, implementation):
    measure(workload, direction, implementation)
