"""From log-mel to audio: Griffin-Lim or WaveGlow, behind one call."""

from typing import Protocol

import torch
from torch import Tensor

from fastglow.audio import Denoiser, MelConfig, griffin_lim
from fastglow.models import WaveGlow


class Vocoder(Protocol):
    def __call__(self, mel: Tensor, seed: int) -> Tensor:
        """log-mel [n_mel_channels, T] -> audio float32 [T * hop_length] on the CPU."""


class GriffinLimVocoder:
    """No weights, no training; sounds like a telephone in a tube."""

    def __init__(self, audio: MelConfig):
        self.audio = audio

    def __call__(self, mel: Tensor, seed: int) -> Tensor:
        return griffin_lim(mel.float(), self.audio, seed=seed).cpu()


class WaveGlowVocoder:
    """A WaveGlow and, if `denoise` is not 0, its denoiser."""

    def __init__(self, model: WaveGlow, sigma: float, denoise: float):
        self.model = model
        self.sigma = sigma
        self.denoise = denoise
        self.denoiser = Denoiser(model) if denoise else None

    @torch.no_grad()
    def __call__(self, mel: Tensor, seed: int) -> Tensor:
        audio = self.model.infer(mel[None], self.sigma, seed=seed)
        if self.denoiser is not None:
            audio = self.denoiser(audio, self.denoise)
        return audio[0].float().cpu()
