"""WaveGlow as the benchmarks build, train and count it."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from fastglow import WaveGlow, WaveGlowLoss
from fastglow.models import WaveGlowConfig

from . import plain_waveglow
from .environment import device, has_gpu
from .training import Batch, Trainee
from .workload import COMPILE, PEER, Implementation

EXACT = torch.float32 if has_gpu() else torch.float64  # a float64 backward of the whole model does not fit a GPU


SIGMA = 0.6

SMALL = {"layers": 2, "flows": 4, "early_every": 2, "mel_channels": 8}


@lru_cache
def new_model(
    channels: int, layers: int = 8, flows: int = 12, early_every: int = 4, mel_channels: int = 80
) -> WaveGlow:
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


def new_batch(model: WaveGlow, batch: int, audio_length: int) -> Batch:
    """As from the data loader: one frame more than the audio has hops."""
    config = model.config
    frames = audio_length // config.upsample_stride + 1
    mel = torch.randn(batch, config.n_mel_channels, frames, device=device())
    return Batch((mel, torch.rand(batch, audio_length, device=device()) * 2 - 1), None)


def trainee(implementation: Implementation, model: WaveGlow) -> Trainee:
    if implementation.name == COMPILE:
        # Only the layers of one WN, shared by all flows: a whole WaveGlow takes minutes to compile.
        return plain_trainee(model, torch.compile(plain_waveglow.run_normed_layers, dynamic=False))
    if implementation.name == PEER:
        twin = implementation.nvidia.waveglow(model)
        return Trainee(twin, dict(twin.named_parameters()), implementation.nvidia.loss.WaveGlowLoss())
    return Trainee(model, dict(model.named_parameters()), WaveGlowLoss())


def plain_trainee(model: WaveGlow, run: plain_waveglow.RunNormedLayers = plain_waveglow.run_normed_layers) -> Trainee:
    """In the dtype of the model."""
    dtype = model.upsample.weight.dtype

    def network(inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        mel, audio = inputs
        return plain_waveglow.forward(model, mel.to(dtype), audio.to(dtype), run)

    return Trainee(network, dict(model.named_parameters()), WaveGlowLoss())


def flops_per_group(config: WaveGlowConfig, folded: bool) -> int:
    """FLOPs of one pass over n_group samples.

    Args:
        config: of the model.
        folded: with each WN's last, linear layer folded into its skip convolutions.
    """
    layers, channels, taps = (config.WN_config[name] for name in ("n_layers", "n_channels", "kernel_size"))
    conditioning = config.n_mel_channels * config.frames_per_group
    gates = layers * (taps * channels + conditioning) * 2 * channels
    residuals = (layers - 1) * channels**2
    total = config.n_mel_channels * conditioning * config.upsample_kernel_size // config.upsample_stride
    c = config.n_group
    for k in range(config.n_flows):
        c -= config.n_early_size * config.is_early(k)
        skips = layers * channels * c if folded else layers * channels**2 + channels * c
        total += gates + residuals + skips + channels * c // 2 + c**2
    return 2 * total
