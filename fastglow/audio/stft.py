"""The short-time Fourier transform and its inverse, for algorithms that go back and forth many times."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

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

    def forward(self, padded: Tensor, frames: slice = slice(None)) -> Tensor:
        """Samples between margins, as `join` returns them -> these of the frames, complex64 [frames, bins]."""
        samples = padded.unfold(0, self.n_fft, self.hop)[: self.n_frames]
        return torch.fft.rfft(samples[frames] * self.window)

    def share(self, spectrum: Tensor) -> Tensor:
        """Successive frames [frames, bins] -> the samples that `join` takes."""
        return overlap_add(torch.fft.irfft(spectrum, n=self.n_fft).mul_(self.window), self.hop)

    def join(self, shares: Iterable[Tensor]) -> Tensor:
        """The signal whose STFT is nearest to all `n_frames` frames, from their shares; in margins of zeros."""
        padded = torch.zeros_like(self.inverse_weight)
        overlap = len(padded) - self.n_frames * self.hop
        start = 0
        for share in shares:
            padded[start : start + len(share)] += share
            start += len(share) - overlap
        return padded.mul_(self.inverse_weight)

    def pad(self, audio: Tensor) -> Tensor:
        """Samples [(n_frames - 1) * hop] -> the same between margins of zeros."""
        return F.pad(audio, (self.start, len(self.inverse_weight) - self.end))

    def unpad(self, padded: Tensor) -> Tensor:
        """The inverse of `pad`."""
        return padded[self.start : self.end]


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """The sum of frames [..., n, length] that begin `hop` samples apart, [..., N], padded to whole hops."""
    n, length = frames.shape[-2:]
    total = frames.new_zeros(*frames.shape[:-2], n - 1 + ceil(length / hop), hop)
    for i, part in enumerate(frames.split(hop, dim=-1)):
        total[..., i : i + n, : part.size(-1)] += part
    return total.flatten(-2)


def power_of(spectrum: Tensor) -> Tensor:
    """Squared magnitudes. One product of neighbouring values takes less time than two of every other value."""
    parts = torch.view_as_real(spectrum)
    squares = parts * parts
    return squares[..., 0] + squares[..., 1]


def magnitude_of(spectrum: Tensor) -> Tensor:
    """Several times as fast as abs(), which guards against squares that overflow."""
    return power_of(spectrum).sqrt_()
