"""The short-time Fourier transform and its inverse, for algorithms that go back and forth many times."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastglow.audio.config import MelConfig
from fastglow.audio.mel import centred_hann_window

_TINY = 1e-10


class Stft:
    """The STFT of `n_frames` frames, the first one centred on the first sample, and its inverse.

    As torch.stft and torch.istft with zero padding, but frame by frame in memory, and with what does not change
    between iterations computed once: half the time.
    """

    def __init__(self, config: MelConfig, n_frames: int, device: torch.device):
        self.n_fft, self.hop, self.n_frames = config.filter_length, config.hop_length, n_frames
        self.window = centred_hann_window(config.win_length, config.filter_length).to(device, torch.float32)
        self.start = self.n_fft // 2
        self.end = self.start + (n_frames - 1) * self.hop
        weight = overlap_add(self.window.square().expand(n_frames, -1), self.hop)
        self.inverse_weight = torch.zeros_like(weight)
        self.inverse_weight[self.start : self.end] = 1 / weight[self.start : self.end].clamp(min=_TINY)

    def forward(self, padded: Tensor) -> Tensor:
        """Samples between margins, as `inverse` returns them -> complex64 [n_frames, bins]."""
        frames = padded.unfold(0, self.n_fft, self.hop)[: self.n_frames]
        return torch.fft.rfft(frames * self.window)

    def inverse(self, spectrum: Tensor) -> Tensor:
        """The signal whose STFT is nearest to `spectrum`, in margins of zeros."""
        frames = torch.fft.irfft(spectrum, n=self.n_fft)
        return overlap_add(frames.mul_(self.window), self.hop).mul_(self.inverse_weight)

    def pad(self, audio: Tensor) -> Tensor:
        """Samples [(n_frames - 1) * hop] -> the same between margins of zeros."""
        return F.pad(audio, (self.start, len(self.inverse_weight) - self.end))

    def unpad(self, padded: Tensor) -> Tensor:
        """The inverse of `pad`."""
        return padded[self.start : self.end]


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """The sum of frames [..., n, length] that begin `hop` samples apart, [..., N], padded to whole hops."""
    n, length = frames.shape[-2:]
    n_hops = -(-length // hop)  # that a frame touches
    parts = F.pad(frames, (0, n_hops * hop - length)).unflatten(-1, (n_hops, hop))
    total = frames.new_zeros(*frames.shape[:-2], n + n_hops - 1, hop)
    for i in range(n_hops):
        total[..., i : i + n, :] += parts[..., i, :]
    return total.flatten(-2)


def magnitude_of(spectrum: Tensor) -> Tensor:
    """Three times as fast as abs(), which guards against squares that overflow."""
    return (spectrum.real.square() + spectrum.imag.square()).sqrt_()
