"""Converts log-mels to audio by Griffin-Lim or WaveGlow, behind one interface."""

from collections.abc import Sequence
from math import ceil, gcd, inf
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastglow.audio import Denoiser, MelConfig, griffin_lim
from fastglow.audio.griffinlim import PREDICTED_POWER
from fastglow.devices import upload
from fastglow.errors import FastglowError
from fastglow.models import WaveGlow
from fastglow.modules.parameter_cache import ParameterCache, parameters_of
from fastglow.voices import VOCODERS

from .recording import MAX_POSITIONS, Recorder
from .settings import check_mel_channels

# Frames of a batch of mels, padding included. A call's hidden tensors hold 32 positions a frame: at 512 channels in
# float32 these are 1 GB each on a GPU.
MAX_FRAMES = {"cuda": 16384, "cpu": 2048}
# Without kernels that skip it, padding is computed: items of a batch have at least this part of its longest.
LEAST_FULL = 7 / 8
# Of the denoiser, as NVIDIA's.
FILTER_LENGTH, DENOISER_HOP = 1024, 256


class Context(NamedTuple):
    """The part of an utterance that a vocoder needs for some of its frames.

    Attributes:
        before, after: frames on each side of them.
        step: the part must begin at a multiple of so many frames.
    """

    before: int
    after: int
    step: int = 1


class Vocoder(Protocol):
    @property
    def call(self) -> Recorder | None:
        """Of its model, if it has one."""

    @property
    def context(self) -> Context | None:
        """None if it needs the whole utterance."""

    def vocode(
        self, mels: Tensor, lengths: Sequence[int], seeds: Sequence[int], first_frame: int = 0
    ) -> list[np.ndarray]:
        """Audio of a batch; an item's result does not depend on the other items.

        Args:
            mels: log-mels, [B, n_mel_channels, T].
            lengths: frames of each item, 1 to T.
            seeds: one per item.
            first_frame: where the mels begin in their utterances.

        Returns:
            audio of each item, float32 [length * hop_length].
        """

    def warm_up(self, mel: Tensor) -> None:
        """Vocodes mels of every size that is recorded, [B, n_mel_channels, any] like `mel`."""


class GriffinLimVocoder:
    """Needs no weights. On recorded mels, with a power of 1, it is close to the recording."""

    context = None
    call = None

    def __init__(self, audio: MelConfig, power: float = PREDICTED_POWER):
        self.audio = audio
        self.power = power

    def vocode(
        self, mels: Tensor, lengths: Sequence[int], seeds: Sequence[int], first_frame: int = 0
    ) -> list[np.ndarray]:
        return [
            griffin_lim(mel[:, :length].float(), self.audio, seed=seed, power=self.power).cpu().numpy()
            for mel, length, seed in zip(mels, lengths, seeds, strict=True)
        ]

    def warm_up(self, mel: Tensor) -> None:
        self.vocode(mel, [mel.shape[2]] * len(mel), [0] * len(mel))


class WaveGlowVocoder:
    """WaveGlow, and its denoiser unless `denoise` is 0."""

    def __init__(self, model: WaveGlow, sigma: float, denoise: float):
        self.model = model
        self.sigma = sigma
        self.denoise = denoise
        self.call = Recorder(model)
        self._denoiser: ParameterCache[Denoiser] = ParameterCache()

    @property
    def context(self) -> Context:
        before, after = self.model.receptive_field
        if not self.denoise:
            return Context(before, after)
        hop = self.model.config.upsample_stride
        around = ceil(FILTER_LENGTH / hop)  # of a sample, the windows over it
        return Context(before + around, after + around, DENOISER_HOP // gcd(hop, DENOISER_HOP))

    def denoiser(self) -> Denoiser:
        """Made again when the weights change."""
        return self._denoiser.get(parameters_of(self.model), lambda: Denoiser(self.model, FILTER_LENGTH))

    def vocode(
        self, mels: Tensor, lengths: Sequence[int], seeds: Sequence[int], first_frame: int = 0
    ) -> list[np.ndarray]:
        audio: dict[int, np.ndarray] = {}
        for items in _batches(lengths, mels.device.type):
            n_frames = max(lengths[i] for i in items)
            batch = torch.stack([mels[i, :, :n_frames] for i in items])  # indexing by a list would wait for a GPU
            audio_of_batch = self._vocode(batch, [lengths[i] for i in items], [seeds[i] for i in items], first_frame)
            samples = audio_of_batch.cpu().numpy()
            hop = self.model.config.upsample_stride
            audio |= {i: row[: lengths[i] * hop] for i, row in zip(items, samples, strict=True)}
        return [audio[i] for i in range(len(lengths))]

    @torch.no_grad()
    def _vocode(self, mels: Tensor, lengths: list[int], seeds: list[int], first_frame: int) -> Tensor:
        device = mels.device
        if not self.call.records:
            padded = None if min(lengths) == mels.shape[2] else upload(lengths, device)
            return self._audio(mels, padded, upload(seeds, device), first_frame)
        inputs = self.call.padded(mels, upload(lengths, device), upload(seeds, device))
        return self.call(self._audio, *inputs, upload([first_frame], device))

    def warm_up(self, mel: Tensor) -> None:
        for n_frames in self.call.sizes(MAX_POSITIONS // len(mel)):
            for _ in range(2):
                self.vocode(mel.new_zeros(*mel.shape[:2], n_frames), [n_frames] * len(mel), [0] * len(mel))

    def _audio(self, mels: Tensor, lengths: Tensor | None, seeds: Tensor, first_frame: Tensor | int) -> Tensor:
        audio = self.model.infer(mels, self.sigma, lengths=lengths, seed=seeds, first_frame=first_frame)
        if not self.denoise:
            return audio.float()
        if lengths is None:
            lengths = torch.full_like(seeds, mels.shape[2])
        n_missing = FILTER_LENGTH // 2 + 1 - audio.shape[1]
        audio = F.pad(audio, (0, max(0, n_missing)))
        return self.denoiser().denoise(audio, self.denoise, lengths * self.model.config.upsample_stride).float()


def _batches(lengths: Sequence[int], device: str) -> list[list[int]]:
    """Indices of the items of each call, the longest first."""
    most, least_full = MAX_FRAMES.get(device, MAX_FRAMES["cpu"]), 0.0 if device == "cuda" else LEAST_FULL
    found: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[found[-1][0]] if found else 0
        if found and (len(found[-1]) + 1) * longest <= most and lengths[i] >= least_full * longest:
            found[-1].append(i)
        else:
            found.append([i])
    return found


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
    if not 0 <= sigma < inf or not 0 <= denoise < inf:
        raise FastglowError(f"sigma={sigma} and denoise={denoise} must be finite and not negative")
    check_mel_channels(waveglow, audio)
    if waveglow.config.upsample_stride != audio.hop_length:
        raise FastglowError(
            f"this WaveGlow makes {waveglow.config.upsample_stride} samples per frame, but the voice's hop_length is "
            f"{audio.hop_length}: use a WaveGlow that was trained on such mels"
        )
    return WaveGlowVocoder(waveglow, sigma, denoise)
