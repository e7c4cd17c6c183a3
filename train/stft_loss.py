"""Multi-resolution STFT distance (Yamamoto, Song & Kim, "Parallel WaveGAN", 2020, equations 2 to 5)."""

from typing import NamedTuple

import torch
from torch import Tensor


class Resolution(NamedTuple):
    """Of an STFT, in samples."""

    filter_length: int
    hop_length: int
    win_length: int


RESOLUTIONS = (Resolution(1024, 120, 600), Resolution(2048, 240, 1200), Resolution(512, 50, 240))
"""The paper's."""

FLOOR = 1e-7
"""Of the power of a bin, as there: below it, the logarithm would compare rounding errors."""


class StftDistance(NamedTuple):
    """Means over the resolutions, scalars.

    Attributes:
        log_magnitude: mean absolute difference of the natural logarithms of the magnitudes.
        convergence: norm of the difference of the magnitudes over the norm of the target's.
    """

    log_magnitude: Tensor
    convergence: Tensor


def stft_distance(audio: Tensor, target: Tensor) -> StftDistance:
    """Of audio [B, N] from a target [B, N], in [-1, 1]; float32, or float64 for float64.

    The convergence is that of the batch as a whole. Beside a silent target it is large, but finite: magnitudes have a
    floor.
    """
    pairs = [(magnitudes(audio, of), magnitudes(target, of)) for of in RESOLUTIONS]
    log_magnitudes = [(found.log() - wanted.log()).abs().mean() for found, wanted in pairs]
    convergences = [(wanted - found).norm() / wanted.norm() for found, wanted in pairs]
    return StftDistance(torch.stack(log_magnitudes).mean(), torch.stack(convergences).mean())


def magnitudes(samples: Tensor, resolution: Resolution) -> Tensor:
    """[B, N] -> [B, bins, frames], at least the root of FLOOR."""
    with torch.autocast(samples.device.type, enabled=False):
        samples = samples.to(torch.promote_types(samples.dtype, torch.float32))
        window = torch.hann_window(resolution.win_length, dtype=samples.dtype, device=samples.device)
        spectrum = torch.stft(samples, *resolution, window, center=True, pad_mode="constant", return_complex=True)
        return (spectrum.real**2 + spectrum.imag**2).clamp(min=FLOOR).sqrt()
