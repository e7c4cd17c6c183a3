"""Removes WaveGlow's constant hum from its output."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastglow.audio.mel import centred_hann_window, check_audio
from fastglow.audio.stft import overlap_add
from fastglow.errors import FastglowError

# Mel frames to vocode for the bias; only the first spectrogram frame is kept.
_BIAS_MEL_FRAMES = 88

_TINY = 1e-10


class MelVocoder(Protocol):
    """The interface of WaveGlow that the denoiser needs; fastglow's and both of NVIDIA's have it."""

    @property
    def upsample(self) -> nn.ConvTranspose1d: ...
    def infer(self, mel: Tensor, /, sigma: float) -> Tensor: ...


class Denoiser(nn.Module):
    """Subtracts a WaveGlow's bias spectrum from audio, as NVIDIA's Denoiser (waveglow/denoiser.py).

    The bias is the magnitude of the first STFT frame of `waveglow`'s output at sigma 0 for a mel of zeros
    (`mode="zeros"`) or of normal noise (`mode="normal"`). `strength` times the bias is subtracted from the magnitudes
    of the audio, down to zero; the phases are kept.

    The constructor uses `waveglow` and does not keep it. `bias_spec` [1, filter_length // 2 + 1, 1] is a
    non-persistent buffer: `state_dict()` is empty.

    Raises:
        FastglowError: an unknown mode, or windows that overlap too little.
    """

    bias_spec: Tensor
    window: Tensor

    def __init__(
        self,
        waveglow: MelVocoder,
        filter_length: int = 1024,
        n_overlap: int = 4,
        win_length: int = 1024,
        mode: str = "zeros",
    ):
        super().__init__()
        # With three windows over every sample, the last sample is not divided by the near-zero end of a window.
        if n_overlap < 3:
            raise FastglowError(f"n_overlap={n_overlap} must be at least 3")
        self.filter_length = filter_length
        self.hop_length = filter_length // n_overlap
        self.win_length = win_length
        if not 3 * self.hop_length <= win_length <= filter_length:
            raise FastglowError(
                f"win_length={win_length} must be between 3 hops ({3 * self.hop_length}) and "
                f"filter_length={filter_length}"
            )
        sources = {"zeros": torch.zeros, "normal": torch.randn}
        if mode not in sources:
            raise FastglowError(f"denoiser mode={mode!r} must be 'zeros' or 'normal'")
        weight = waveglow.upsample.weight
        shape = (1, waveglow.upsample.in_channels, _BIAS_MEL_FRAMES)
        mel = sources[mode](shape, dtype=weight.dtype, device=weight.device)
        window = centred_hann_window(win_length, filter_length).to(weight.device)
        self.register_buffer("window", window, persistent=False)
        with torch.no_grad():
            hum = waveglow.infer(mel, sigma=0.0).float()
            ends = torch.full((1, 1), hum.size(1), device=hum.device)
            bias_spec = self._stft(hum, ends)[:, :1].abs().transpose(1, 2)
        self.register_buffer("bias_spec", bias_spec, persistent=False)

    def forward(self, audio: Tensor, strength: float = 0.1) -> Tensor:
        """NVIDIA's result: `denoise` with a channel, without the samples past the last whole hop.

        Args:
            audio: [B, N], floating point.
            strength: how many times the bias to subtract.

        Returns:
            [B, 1, N'], N' = N // hop_length * hop_length; float32, or float64 for float64 audio.

        Raises:
            FastglowError: as `denoise`.
        """
        denoised = self.denoise(audio, strength)
        return denoised[:, None, : denoised.size(1) // self.hop_length * self.hop_length]

    def denoise(self, audio: Tensor, strength: float = 0.1, lengths: Tensor | None = None) -> Tensor:
        """The denoised audio, of which each item gets the same result as alone.

        Args:
            audio: [B, N], floating point.
            strength: how many times the bias to subtract.
            lengths: samples of each item, [B], read on the device; None: all have N.

        Returns:
            [B, N], zero past each length; float32, or float64 for float64 audio.

        Raises:
            FastglowError: audio that is not [B, N] floating point or has fewer than filter_length // 2 + 1 samples;
                a negative strength.
        """
        check_audio(audio, self.filter_length)
        if not strength >= 0:
            raise FastglowError(f"denoiser strength={strength} must be at least 0")
        ends = audio.new_full((len(audio), 1), audio.size(1), dtype=torch.int64)
        if lengths is not None:
            ends = lengths.to(audio.device, torch.int64).clamp(0, audio.size(1)).unsqueeze(1)
        x = audio.to(torch.promote_types(audio.dtype, torch.float32))
        spectrum = self._stft(x, ends)
        magnitude = spectrum.abs()
        kept = torch.clamp(magnitude - self.bias_spec.transpose(1, 2) * strength, min=0.0)
        # Scaling keeps the phase without computing an angle.
        spectrum = spectrum * (kept / magnitude.clamp(min=torch.finfo(magnitude.dtype).tiny))
        return self._istft(spectrum, ends, audio.size(1))

    def _stft(self, audio: Tensor, ends: Tensor) -> Tensor:
        """[B, N], each reflected at 0 and at its end [B, 1] -> complex [B, N // hop_length + 1, bins]."""
        half = self.filter_length // 2
        position = torch.arange(-half, audio.size(1) + half, device=audio.device).abs()
        position = torch.where(position < ends, position, 2 * (ends - 1) - position)
        # Clamped where a frame is past the end, and in audio that is shorter than half a frame.
        padded = audio.gather(1, position.clamp(min=0).minimum((ends - 1).clamp(min=0)))
        return torch.fft.rfft(padded.unfold(1, self.filter_length, self.hop_length) * self.window.to(audio))

    def _istft(self, spectrum: Tensor, ends: Tensor, n_samples: int) -> Tensor:
        """The inverse, zero past each end: [B, n_samples]."""
        window = self.window.to(spectrum.real)
        inside = torch.arange(spectrum.size(1), device=spectrum.device) <= ends // self.hop_length
        frames = torch.fft.irfft(spectrum, n=self.filter_length) * window * inside.unsqueeze(2)
        weight = overlap_add(window.square() * inside.unsqueeze(2), self.hop_length)
        audio = overlap_add(frames, self.hop_length) / weight.clamp(min=_TINY)
        # Less than a hop past the last frame's centre, a sample is still inside its window.
        half = self.filter_length // 2
        audio = F.pad(audio, (0, max(0, half + n_samples - audio.size(1))))[:, half : half + n_samples]
        return audio.masked_fill(torch.arange(n_samples, device=audio.device) >= ends, 0.0)
