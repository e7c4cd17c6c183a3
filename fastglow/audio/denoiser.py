"""Takes the constant hum of a WaveGlow out of what it generates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastglow.audio.mel import check_audio
from fastglow.errors import FastglowError

# Mel frames generated to hear the model's bias; its first spectrogram frame is what is kept.
_BIAS_MEL_FRAMES = 88


class Denoiser(nn.Module):
    """Subtracts a WaveGlow's bias spectrum from audio: `denoiser(audio [B, N], strength=0.1) -> [B, N]`.

    As NVIDIA's Denoiser (which returns [B, 1, N'] with N' = N rounded down to whole hops; here the shape is
    the audio's own): the bias is the magnitude of the first STFT frame of what `waveglow` makes of a mel of
    zeros (`mode="zeros"`) or of normal noise (`mode="normal"`) at sigma 0; `strength` times it is subtracted
    from the magnitudes of `audio`, not below zero, and the phases are kept.

    `waveglow` is used in the constructor only and not kept; it needs `infer(mel, sigma=...)`, `upsample` and
    `n_mel_channels`. `bias_spec` [1, filter_length // 2 + 1, 1] is a non-persistent buffer: `state_dict()`
    is empty. Computes in fp32 (fp64 for fp64 audio) and returns the audio's dtype.

    Raises FastglowError for audio that is not [B, N] floating point or has fewer than
    filter_length // 2 + 1 samples, for a negative strength, and for windows that overlap too little.
    """

    def __init__(
        self,
        waveglow: nn.Module,
        filter_length: int = 1024,
        n_overlap: int = 4,
        win_length: int = 1024,
        mode: str = "zeros",
    ):
        super().__init__()
        # Three windows over every sample keep the last one away from a division by the window's end.
        if n_overlap < 3:
            raise FastglowError(f"n_overlap must be at least 3, not {n_overlap}")
        self.filter_length = filter_length
        self.hop_length = filter_length // n_overlap
        self.win_length = win_length
        if not 3 * self.hop_length <= win_length <= filter_length:
            raise FastglowError(
                f"win_length {win_length} must lie between 3 hops ({3 * self.hop_length}) and filter_length "
                f"({filter_length})"
            )
        sources = {"zeros": torch.zeros, "normal": torch.randn}
        if mode not in sources:
            raise FastglowError(f"unknown denoiser mode {mode!r}: give 'zeros' or 'normal'")
        weight = waveglow.upsample.weight
        shape = (1, waveglow.n_mel_channels, _BIAS_MEL_FRAMES)
        mel = sources[mode](shape, dtype=weight.dtype, device=weight.device)
        with torch.no_grad():
            bias_spec = self._stft(waveglow.infer(mel, sigma=0.0).float())[:, :, :1].abs()
        self.register_buffer("bias_spec", bias_spec, persistent=False)

    def forward(self, audio: Tensor, strength: float = 0.1) -> Tensor:
        check_audio(audio, self.filter_length)
        if not strength >= 0:
            raise FastglowError(f"denoiser strength must not be negative: {strength}")
        spectrum = self._stft(audio.to(torch.promote_types(audio.dtype, torch.float32)))
        magnitude = spectrum.abs()
        kept = torch.clamp(magnitude - self.bias_spec * strength, min=0.0)
        # Scaling keeps the phase, without the cost of an angle.
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
