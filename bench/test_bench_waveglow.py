"""The whole WaveGlow at the published shapes: compute-bound.

Training as NVIDIA's DGXA100_waveglow_AMP script: 10 segments of 8000 samples, float16 autocast, Adam, GradScaler.
Inference: one utterance of 10 seconds in float16. The noise is an input, except for NVIDIA's `infer`, which draws it.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

from fastglow import WaveGlow, WaveGlowLoss
from fastglow.models import WaveGlowConfig

from . import plain_waveglow
from .environment import device, has_gpu
from .workload import (
    BACKWARD,
    COMPILE,
    FORWARD,
    INFERENCE,
    PEER,
    TRAIN_STEP,
    Cost,
    Implementation,
    Workload,
    cases,
    largest_error,
    launching,
    on_this_machine,
)

EXACT = torch.float32 if has_gpu() else torch.float64  # a float64 backward of the whole model does not fit a GPU

SIGMA = 0.6
LOSS_SCALE = 2.0**12  # without it, float16 gradients of a mean over all samples underflow
LEARNING_RATE, GRAD_CLIP_THRESH = 1e-4, 65504.0  # NVIDIA's script
CHECKED_STEPS = 4  # a GradScaler may need a few steps to find its scale
LOSS_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2}  # absolute, of losses around 1


@lru_cache
def new_model(channels: int, layers: int, flows: int, early_every: int, mel_channels: int) -> WaveGlow:
    """A model whose couplings and determinants differ from the identity that a new model starts with."""
    torch.manual_seed(0)
    with torch.device(device()):
        model = WaveGlow(
            n_mel_channels=mel_channels,
            n_flows=flows,
            n_early_every=early_every,
            WN_config={"n_layers": layers, "n_channels": channels, "kernel_size": 3},
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("end.weight"):
                parameter.normal_(std=0.1 / math.sqrt(channels))
            elif name.startswith("convinv."):
                parameter.mul_(1.1).add_(0.02 * torch.randn_like(parameter))
    return model.eval()


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

    op = "waveglow"

    @property
    def model(self) -> WaveGlow:
        return new_model(self.channels, self.layers, self.flows, self.early_every, self.mel_channels)

    @property
    def exact_model(self) -> WaveGlow:
        return copy.deepcopy(self.model).to(EXACT)

    def supports(self, implementation: str) -> bool:
        return True

    def samples(self, direction: str) -> int:
        return self.batch * self.audio_length

    def parameter_bytes(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters()) * self.dtype.itemsize


@dataclass(frozen=True)
class Trainee:
    """What a training loop needs.

    Attributes:
        network: (mel, audio) -> what `WaveGlow.forward` returns.
        parameters: by their published names.
        criterion: the network's result -> loss.
    """

    network: Callable[[tuple[Tensor, Tensor]], tuple[Tensor, list[Tensor], list[Tensor]]]
    parameters: dict[str, nn.Parameter]
    criterion: Callable[[tuple[Tensor, list[Tensor], list[Tensor]]], Tensor]


class Training(WaveGlowWorkload):
    directions = (FORWARD, BACKWARD, TRAIN_STEP)

    def shapes(self) -> dict[str, list[int]]:
        mel, audio = self._batch()
        return {"mel": list(mel.shape), "audio": list(audio.shape)}

    def cost(self, direction: str) -> Cost:
        """A backward pass costs two forward passes; parameters are read, gradients written."""
        groups = self.samples(direction) // self.model.config.n_group
        passes = {FORWARD: 1, BACKWARD: 2, TRAIN_STEP: 3}[direction]
        flops = passes * groups * flops_per_group(self.model.config, folded=False)
        return Cost(passes * self.parameter_bytes(), flops)

    def targets(self, direction: str) -> dict[str, float]:
        if direction != TRAIN_STEP or self.channels != 512:
            return {}
        return {"samples_per_second": 1.5e6, "percent_of_bfloat16_ceiling": 40}

    def capturable(self, direction: str) -> bool:
        return direction != TRAIN_STEP  # GradScaler syncs to see whether the gradients are finite

    def call(self, implementation: Implementation, direction: str) -> Callable[[], list[Tensor]]:
        batch = self._batch()
        if direction == TRAIN_STEP:
            return self._train_step(self._trainee(implementation, copy.deepcopy(self.model)), batch)
        trainee = self._trainee(implementation, self.model)
        return self._pass(trainee, batch, direction)

    def verify(self, implementation: Implementation, direction: str) -> float:
        batch = self._batch()
        if direction == TRAIN_STEP:
            return self._verify_train_step(implementation, batch)

        def results(trainee: Trainee, autocast: bool = True) -> list[Tensor]:
            tensors = self._pass(trainee, batch, direction, autocast)()
            if direction == BACKWARD:
                return [torch.cat([gradient.flatten() for gradient in tensors])]
            z, *log_s, log_dets = (tensor.detach() for tensor in tensors)
            return [z, torch.cat([x.flatten() for x in log_s]), log_dets]

        with launching(implementation):
            actual = results(self._trainee(implementation, self.model))
        with torch.set_grad_enabled(direction == BACKWARD):
            usual = results(self._plain(self.model))
            with full_precision():
                exact = results(self._plain(self.exact_model), autocast=False)
        return largest_error(actual, usual, exact, direction)

    def _verify_train_step(self, implementation: Implementation, batch: tuple[Tensor, Tensor]) -> float:
        """Checks the first step's loss, and that after all steps every parameter is finite and changed."""
        trainee = self._trainee(implementation, copy.deepcopy(self.model))
        step = self._train_step(trainee, batch)
        with launching(implementation):
            (loss,) = step()
        for _ in range(CHECKED_STEPS - 1):
            step()
        before = self.model.state_dict()
        for name, parameter in trainee.parameters.items():
            assert parameter.isfinite().all(), f"{name} is not finite after {CHECKED_STEPS} steps"
            assert not torch.equal(parameter, before[name]), f"{name} did not change"
        with torch.no_grad(), full_precision():
            exact = self._loss(self._plain(self.exact_model), batch, autocast=False)
        error = abs(loss.item() - exact.item())
        assert error <= LOSS_TOLERANCE[self.dtype], f"the loss is {loss.item()}, not {exact.item()}"
        return error

    def _batch(self) -> tuple[Tensor, Tensor]:
        """As from the data loader: one frame more than the audio has hops."""
        config = self.model.config
        frames = self.audio_length // config.upsample_stride + 1
        mel = torch.randn(self.batch, config.n_mel_channels, frames, device=device())
        return mel, torch.rand(self.batch, self.audio_length, device=device()) * 2 - 1

    def _trainee(self, implementation: Implementation, model: WaveGlow) -> Trainee:
        if implementation.name == COMPILE:
            # Only the layers of one WN, shared by all flows: a whole WaveGlow takes minutes to compile.
            return self._plain(model, torch.compile(plain_waveglow.run_normed_layers, dynamic=False))
        if implementation.name == PEER:
            twin = implementation.nvidia.waveglow(model)
            criterion = implementation.nvidia.loss.WaveGlowLoss()
            return Trainee(twin, dict(twin.named_parameters()), lambda output: criterion(output, None))
        return Trainee(model, dict(model.named_parameters()), WaveGlowLoss())

    def _plain(
        self, model: WaveGlow, run: plain_waveglow.RunNormedLayers = plain_waveglow.run_normed_layers
    ) -> Trainee:
        dtype = model.upsample.weight.dtype
        return Trainee(
            lambda batch: plain_waveglow.forward(model, batch[0].to(dtype), batch[1].to(dtype), run),
            dict(model.named_parameters()),
            WaveGlowLoss(),
        )

    def _autocast(self, on: bool) -> torch.autocast:
        return torch.autocast(device().type, torch.float16, enabled=on and self.dtype == torch.float16)

    def _loss(self, trainee: Trainee, batch: tuple[Tensor, Tensor], autocast: bool = True) -> Tensor:
        with self._autocast(autocast):
            return trainee.criterion(trainee.network(batch))

    def _pass(
        self, trainee: Trainee, batch: tuple[Tensor, Tensor], direction: str, autocast: bool = True
    ) -> Callable[[], list[Tensor]]:
        """Forward: [z, *log s, log|det W| of all flows]. Backward: gradients in the order of the parameters' names."""
        if direction == FORWARD:

            def run() -> list[Tensor]:
                with self._autocast(autocast):
                    z, log_s_list, log_det_list = trainee.network(batch)
                return [z, *log_s_list, torch.stack(log_det_list)]

            return run
        loss = self._loss(trainee, batch, autocast)
        parameters = [trainee.parameters[name] for name in sorted(trainee.parameters)]
        scale = torch.full_like(loss, LOSS_SCALE)
        return lambda: list(torch.autograd.grad(loss, parameters, scale, retain_graph=True))

    def _train_step(self, trainee: Trainee, batch: tuple[Tensor, Tensor]) -> Callable[[], list[Tensor]]:
        """As NVIDIA's train.py."""
        parameters = list(trainee.parameters.values())
        optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
        scaler = torch.amp.GradScaler(device().type, enabled=self.dtype == torch.float16)

        def step() -> list[Tensor]:
            optimizer.zero_grad(set_to_none=True)
            loss = self._loss(trainee, batch)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, GRAD_CLIP_THRESH)
            scaler.step(optimizer)
            scaler.update()
            return [loss.detach()]

        return step


class Speaking(WaveGlowWorkload):
    directions = (INFERENCE,)

    def shapes(self) -> dict[str, list[int]]:
        mel, noise = self._mel_and_noise()
        return {"mel": list(mel.shape), "noise": list(noise.shape)}

    def cost(self, direction: str) -> Cost:
        """FLOPs of the folded model; bytes of the unfolded parameters, which makes no difference here."""
        groups = self.samples(direction) // self.model.config.n_group
        return Cost(self.parameter_bytes(), groups * flops_per_group(self.model.config, folded=True))

    def targets(self, direction: str) -> dict[str, float]:
        return {"percent_of_bfloat16_ceiling": {512: 45, 256: 35}.get(self.channels, 0)}

    def call(self, implementation: Implementation, direction: str) -> Callable[[], Tensor]:
        mel, noise = self._mel_and_noise()
        return self._speaker(implementation, mel, noise, own_noise=True)

    def verify(self, implementation: Implementation, direction: str) -> float:
        mel, noise = self._mel_and_noise()
        with launching(implementation):
            actual = self._speaker(implementation, mel, noise)()
        usual = plain_waveglow.Speaker.of(self._in_dtype()).infer(mel, noise, SIGMA)
        with full_precision():
            exact = plain_waveglow.Speaker.of(self.exact_model).infer(mel.to(EXACT), noise.to(EXACT), SIGMA)
        return largest_error([actual], [usual], [exact], INFERENCE)

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

    def _mel_and_noise(self) -> tuple[Tensor, Tensor]:
        config = self.model.config
        frames, groups = self.audio_length // config.upsample_stride, self.audio_length // config.n_group
        mel = torch.randn(self.batch, config.n_mel_channels, frames, device=device(), dtype=self.dtype)
        return mel, torch.randn(self.batch, config.n_group, groups, device=device(), dtype=self.dtype)


def flops_per_group(config: WaveGlowConfig, folded: bool) -> int:
    """FLOPs of one pass over n_group samples.

    Args:
        config: of the model.
        folded: with each WN's last, linear layer folded into its skip convolutions.
    """
    layers, channels, taps = (config.WN_config[name] for name in ("n_layers", "n_channels", "kernel_size"))
    conditioning = config.n_mel_channels * config.n_group
    gates = layers * (taps * channels + conditioning) * 2 * channels
    residuals = (layers - 1) * channels**2
    total = config.n_mel_channels**2 * config.upsample_kernel_size // config.upsample_stride * config.n_group
    c = config.n_group
    for k in range(config.n_flows):
        c -= config.n_early_size * config.is_early(k)
        skips = layers * channels * c if folded else layers * channels**2 + channels * c
        total += gates + residuals + skips + channels * c // 2 + c**2
    return 2 * total


@contextmanager
def full_precision() -> Iterator[None]:
    """Turns off TF32, which PyTorch allows for float32 convolutions."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        yield


SMALL: dict[str, int] = {"layers": 2, "flows": 4, "early_every": 2}

WORKLOADS = on_this_machine(
    gpu=[
        *(Speaking(f"inference-{n}", torch.float16, n, batch=1, audio_length=860 * 256) for n in (512, 256)),
        *(Training(f"train-{n}", torch.float16, n, batch=10, audio_length=8000) for n in (512, 256)),
    ],
    cpu=[
        Speaking("inference-small", torch.float32, 16, batch=1, audio_length=5 * 256, **SMALL),
        Training("train-small", torch.float32, 16, batch=2, audio_length=1000, mel_channels=8, **SMALL),
    ],
)


@pytest.mark.parametrize("workload, direction", cases(WORKLOADS))
def test_waveglow(measure, workload, direction, implementation):
    measure(workload, direction, implementation)
