"""The arithmetic of a training step, and how much of it per second a device could do."""

import time
from functools import cache
from itertools import pairwise

import torch

from fastglow.models import Tacotron2Config, WaveGlowConfig

from .config import ModelConfig
from .data import SegmentBatch, TextMelBatch

PASSES = 3  # backward takes two passes: gradients of the inputs and of the weights

_WIDEST = {"cuda": 8192}  # square that a rate is measured on; elsewhere _WIDEST_ELSEWHERE
_WIDEST_ELSEWHERE = 1024
_NARROWEST = 128
_SLOWEST = 0.02  # seconds of one product: slower devices are measured on smaller squares
_REPEATS = 5


def training_flops(config: ModelConfig, batch: TextMelBatch | SegmentBatch) -> int:
    """FLOPs of one forward and backward pass, three times those of the forward pass, 2 per multiplication and addition.

    Only matrix products and convolutions count, attention's among them: not biases, activations, normalisations, the
    1x1 convolutions' determinants, losses and the optimizer. Padding counts, because the reference's convolutions and
    decoder compute it. What an implementation does beyond the model's definition, such as computing activations
    again to save memory, does not count.
    """
    if isinstance(config, Tacotron2Config):
        assert isinstance(batch, TextMelBatch)
        batch_size, symbols = batch.text.shape
        return PASSES * tacotron2_flops(config, batch_size, symbols, batch.mel.shape[2])
    assert isinstance(batch, SegmentBatch)
    return PASSES * waveglow_flops(config, len(batch.audio), batch.mel.shape[2], batch.audio.shape[1])


def tacotron2_flops(config: Tacotron2Config, batch_size: int, symbols: int, frames: int) -> int:
    """FLOPs of `Tacotron2.forward` on texts of `symbols` and mels of `frames`, padding included."""
    D, A = config.encoder_embedding_dim, config.attention_dim
    step_dim, P = config.n_mel_channels * config.n_frames_per_step, config.prenet_dim
    filters, taps = config.attention_location_n_filters, config.attention_location_kernel_size
    encoder = config.encoder_n_convolutions * config.encoder_kernel_size * D**2
    lstm = 2 * _lstm(D, D // 2)  # two directions
    memory_layer = D * A
    prenet = step_dim * P + P**2
    attention_rnn = _lstm(P + D, config.attention_rnn_dim)
    query = config.attention_rnn_dim * A
    decoder_rnn = _lstm(config.attention_rnn_dim + D, config.decoder_rnn_dim)
    projections = (config.decoder_rnn_dim + D) * (step_dim + 1)  # of the frames and the gate
    location = 2 * filters * taps + filters * A
    energy, context = A, D
    widths = [
        config.n_mel_channels,
        *[config.postnet_embedding_dim] * (config.postnet_n_convolutions - 1),
        config.n_mel_channels,
    ]
    postnet = config.postnet_kernel_size * sum(n_in * n_out for n_in, n_out in pairwise(widths))

    per_symbol = encoder + lstm + memory_layer
    per_step = prenet + attention_rnn + query + decoder_rnn + projections + symbols * (location + energy + context)
    steps = frames // config.n_frames_per_step
    return 2 * batch_size * (symbols * per_symbol + steps * per_step + frames * postnet)


def _lstm(n_inputs: int, n_units: int) -> int:
    """Multiplications of one step: four gates."""
    return 4 * n_units * (n_inputs + n_units)


def waveglow_flops(config: WaveGlowConfig, batch_size: int, frames: int, samples: int) -> int:
    """FLOPs of `WaveGlow.forward` on mels of `frames` and audio of `samples`."""
    layers, channels, taps = (config.WN_config[name] for name in ("n_layers", "n_channels", "kernel_size"))
    conditioning = config.n_mel_channels * config.frames_per_group
    upsampling = config.n_mel_channels * conditioning * config.upsample_kernel_size // config.n_group
    gates = layers * (taps * channels + conditioning) * 2 * channels
    res_skip = (2 * layers - 1) * channels**2  # the last layer has no residual
    per_group = 0
    c = config.n_group
    for flow in range(config.n_flows):
        c -= config.n_early_size * config.is_early(flow)
        start, end, invertible = c // 2 * channels, channels * c, c**2
        per_group += start + gates + res_skip + end + invertible
    return 2 * batch_size * (frames * upsampling + samples // config.n_group * per_group)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """The FLOP/s of a large matrix product, as a ceiling for training: measured at the first call, then remembered.

    On a GPU in the current TF32 setting, of which each has its own rate; the call waits for the GPU. It takes at most
    about 0.2 s, also where the processor computes this dtype slowly.
    """
    matmul = torch.backends.cuda.matmul
    # The older name of the setting must not be read once the newer one is set.
    setting = matmul.fp32_precision if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
    return _matrix_rate(device, dtype, setting if dtype == torch.float32 else None)


@cache
def _matrix_rate(device: torch.device, dtype: torch.dtype, tf32: str | bool | None) -> float:
    """The best of several products, so that other work on the machine does not lower it."""
    n, seconds = _NARROWEST, _seconds(_NARROWEST, device, dtype, 2)
    while n < _WIDEST.get(device.type, _WIDEST_ELSEWHERE) and 8 * seconds < _SLOWEST:
        try:
            seconds = _seconds(2 * n, device, dtype, 2)
        except torch.OutOfMemoryError:
            break  # the model and its batch leave no more room
        n *= 2
    return 2 * n**3 / _seconds(n, device, dtype, _REPEATS)


def _seconds(n: int, device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    """Of a product of two squares, the fastest of `repeats`."""
    generator = torch.Generator(device)  # the run's own draws must not depend on it
    a, b, out = (torch.rand(n, n, device=device, generator=generator).to(dtype) for _ in range(3))
    times = []
    for _ in range(repeats):
        _wait(device)
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
