"""Converts log-mels to audio by Griffin-Lim or WaveGlow, behind one interface."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fastglow.audio import Denoiser, MelConfig, griffin_lim
from fastglow.audio.griffinlim import PREDICTED_POWER
from fastglow.errors import FastglowError
from fastglow.models import WaveGlow
from fastglow.voices import VOCODERS

from .settings import check_mel_channels


class Vocoder(Protocol):
    def vocode(self, mels: Tensor, lengths: Sequence[int], seeds: Sequence[int]) -> list[Tensor]:
        """Audio of a batch; an item's result does not depend on the other items.

        Args:
            mels: log-mels, [B, n_mel_channels, T].
            lengths: frames of each item, 1 to T.
            seeds: one per item.

        Returns:
            audio of each item, float32 [length * hop_length], on the CPU.
        """


class GriffinLimVocoder:
    """Needs no weights. On recorded mels, with a power of 1, it is close to the recording."""

    def __init__(self, audio: MelConfig, power: float = PREDICTED_POWER):
        self.audio = audio
        self.power = power

    def vocode(self, mels: Tensor, lengths: Sequence[int], seeds: Sequence[int]) -> list[Tensor]:
        return [
            griffin_lim(mel[:, :length].float(), self.audio, seed=seed, power=self.power).cpu()
            for mel, length, seed in zip(mels, lengths, seeds, strict=True)
        ]


class WaveGlowVocoder:
    """WaveGlow, and its denoiser unless `denoise` is 0."""

    def __init__(self, model: WaveGlow, sigma: float, denoise: float):
        self.model = model
        self.sigma = sigma
        self.denoise = denoise
        self.denoiser = Denoiser(model) if denoise else None

    def vocode(self, mels: Tensor, lengths: Sequence[int], seeds: Sequence[int]) -> list[Tensor]:
        # Item by item: each result has the bits that it has alone, and no padding is computed.
        return [
            self._vocode_one(mel[None, :, :length], seed)
            for mel, length, seed in zip(mels, lengths, seeds, strict=True)
        ]

    @torch.no_grad()
    def _vocode_one(self, mel: Tensor, seed: int) -> Tensor:
        audio = self.model.infer(mel, self.sigma, seed=seed)
        if self.denoiser is not None:
            audio = self.denoiser(audio, self.denoise)
        return audio[0].float().cpu()


def build_vocoder(name: str, audio: MelConfig, waveglow: WaveGlow | None, sigma: float, denoise: float) -> Vocoder:
    """The vocoder `name`, one of `VOCODERS`; `waveglow` already has its final device and dtype.

    Raises:
        FastglowError: an unknown name, no WaveGlow or one that does not fit `audio`, a bad sigma or denoise.
    """
    if name not in VOCODERS:
        raise FastglowError(f"unknown vocoder {name!r}: use one of {', '.join(VOCODERS)}")
    if name == "griffin-lim":
        return GriffinLimVocoder(audio)
    if waveglow is None:
        raise FastglowError("the vocoder waveglow needs a WaveGlow checkpoint: pass one, or use griffin-lim")
    if not 0 <= sigma < math.inf or not 0 <= denoise < math.inf:
        raise FastglowError(f"sigma={sigma} and denoise={denoise} must be finite and not negative")
    check_mel_channels(waveglow, audio)
    if waveglow.config.upsample_stride != audio.hop_length:
        raise FastglowError(
            f"this WaveGlow makes {waveglow.config.upsample_stride} samples per frame, but the voice's hop_length is "
            f"{audio.hop_length}: use a WaveGlow that was trained on such mels"
        )
    return WaveGlowVocoder(waveglow, sigma, denoise)
