"""Removes WaveGlow's constant hum from its output."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from fastglow.audio.mel import check_audio
from fastglow.errors import FastglowError

# Mel frames to vocode for the bias; only the first spectrogram frame is kept.
_BIAS_MEL_FRAMES = 88


class MelVocoder(Protocol):
    """The interface of WaveGlow that the denoiser needs; fastglow's, NVIDIA's and torchaudio's have it."""

    @property
    def n_mel_channels(self) -> int: ...
    @property
    def upsample(self) -> nn.ConvTranspose1d: ...
    def infer(self, mel: Tensor, /, sigma: float) -> Tensor: ...


class Denoiser(nn.Module):
    """Subtracts a WaveGlow's bias spectrum from audio: `denoiser(audio [B, N], strength=0.1) -> [B, N]`.

    As NVIDIA's Denoiser, which however returns [B, 1, N'] with N' = N rounded down to whole hops. The bias is the
    magnitude of the first STFT frame of `waveglow`'s output at sigma 0 for a mel of zeros (`mode="zeros"`) or of
    normal noise (`mode="normal"`). `strength` times the bias is subtracted from the magnitudes of `audio`, down to
    zero; the phases are kept.

    The constructor uses `waveglow` and does not keep it. `bias_spec` [1, filter_length // 2 + 1, 1] is a
    non-persistent buffer: `state_dict()` is empty. Computes in fp32 (fp64 for fp64 audio) and returns the audio's
    dtype.

    Raises FastglowError for audio that is not [B, N] floating point or has fewer than
    filter_length // 2 + 1 samples, for a negative strength, and for windows that overlap too little.
    """

    bias_spec: Tensor

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
        shape = (1, waveglow.n_mel_channels, _BIAS_MEL_FRAMES)
        mel = sources[mode](shape, dtype=weight.dtype, device=weight.device)
        with torch.no_grad():
            bias_spec = self._stft(waveglow.infer(mel, sigma=0.0).float())[:, :, :1].abs()
        self.register_buffer("bias_spec", bias_spec, persistent=False)

    def forward(self, audio: Tensor, strength: float = 0.1) -> Tensor:
        check_audio(audio, self.filter_length)
        if not strength >= 0:
            raise FastglowError(f"denoiser strength={strength} must be at least 0")
        spectrum = self._stft(audio.to(torch.promote_types(audio.dtype, torch.float32)))
        magnitude = spectrum.abs()
        kept = torch.clamp(magnitude - self.bias_spec * strength, min=0.0)
        # Scaling keeps the phase without computing an angle.
        spectrum = spectrum * (kept / magnitude.clamp(min=torch.finfo(magnitude.dtype).tiny))
        denoised = torch.istft(
            spectrum,
            self.filter_length,
            hop_length=self.hop_length,
            win_length=self.win_length,
            window=self._window(magnitude),
            length=audio.size(1),
        )
        return denoised.to(audio.dtype)

    def _stft(self, audio: Tensor) -> Tensor:
        """[B, N] -> complex [B, filter_length // 2 + 1, N // hop_length + 1]."""
        return torch.stft(
            audio,
            self.filter_length,
            hop_length=self.hop_length,
            win_length=self.win_length,
            window=self._window(audio),
            pad_mode="reflect",
            return_complex=True,
        )

    def _window(self, like: Tensor) -> Tensor:
        return torch.hann_window(self.win_length, dtype=like.dtype, device=like.device)
