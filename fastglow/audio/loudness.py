"""The loudness of the returned speech: one gain for all that a voice says, from the level of its log-mels."""

from __future__ import annotations

import math
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from fastglow.audio.config import MelConfig
from fastglow.audio.mel import centred_hann_window
from fastglow.audio.mel_inversion import level_above, mel_constraint
from fastglow.errors import FastglowError

# RMS of the active part, in dB relative to a full-scale constant. Speech peaks 10 to 16 dB above its RMS, so the
# limiter rarely has work.
LEVEL_DB = -18.0
CEILING_DB = -1.0
# Limits the gain, so that near-silent output is not amplified to noise at speech level.
MAX_GAIN_DB = 24.0
# Below the voice's level by this much is silence: under the softest consonants, above the noise of a pause.
SILENCE_DB = -40.0
MAX_VOLUME = 100.0

# Frames this far below the loudest are pauses.
_ACTIVE_DB = -25.0

# From equal magnitudes of all bins, the power of recordings comes within 0.3 dB.
_UPDATES = 10


def amplitude(decibels: float) -> float:
    """The factor of a level or gain in dB."""
    return 10 ** (decibels / 20)


def normalizing_gain(level: float) -> float:
    """The factor that brings speech of this level [dBFS] to `LEVEL_DB`, at most `MAX_GAIN_DB`."""
    return amplitude(min(LEVEL_DB - level, MAX_GAIN_DB))


def mel_level(log_mel: Tensor | np.ndarray, config: MelConfig) -> float:
    """The level of the speech that a log-mel [n_mel_channels, T > 0] describes: RMS of its active part in dBFS.

    Active are the frames within 25 dB of the loudest. Magnitudes of the FFT's bins that have the given mel come from
    multiplicative updates (`fastglow.audio.mel_inversion`), and Parseval's theorem with the window gives the power of
    a frame. With 80 channels or more, recordings come within 0.3 dB, and white noise, whose top the mel lacks, within
    1.5 dB. A lone sine in a wide filter, above 2 kHz, is underrated by several dB. At the log-mel's floor, 1e-5, the
    level is about -100 dBFS.
    """
    mel = torch.as_tensor(log_mel).detach().float().cpu().exp().T.contiguous()
    constraint = mel_constraint(config, mel.device)
    magnitude = level_above(mel, constraint.filters, config)
    inside = torch.ones(len(mel), constraint.n_bins)
    for _ in range(_UPDATES):
        constraint.update(inside, mel)
    magnitude[:, : constraint.n_bins] = inside
    power = magnitude.double().square()
    power[:, 1:-1] *= 2  # bins of negative frequency
    window = centred_hann_window(config.win_length, config.filter_length)
    powers = power.sum(dim=1) / (config.filter_length * window.square().sum())
    active = powers[powers >= powers.max() * amplitude(_ACTIVE_DB) ** 2]
    return 10 * math.log10(active.mean().item())


def check_volume(volume: object) -> None:
    """Raises FastglowError for a volume that is not from 0 to `MAX_VOLUME`."""
    if not isinstance(volume, Real) or not 0 <= float(volume) <= MAX_VOLUME:
        raise FastglowError(f"volume={volume!r} must be a factor from 0 to {MAX_VOLUME:g}; 1 keeps the level")
