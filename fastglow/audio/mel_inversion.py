"""Linear magnitudes from mel magnitudes."""

from __future__ import annotations

import torch
from torch import Tensor

from fastglow.audio.config import MelConfig

_TINY = 1e-10

# Channels whose centres are above this fraction of mel_fmax tell the level above it.
_TOP = 7 / 8


class MelConstraint:
    """Moves linear magnitudes towards those whose mel is given, in the bins up to the last filter's.

    Lee & Seung's multiplicative updates (2001): none increases the Kullback-Leibler divergence of the magnitudes' mel
    from the given one. A bin is scaled by a weighted mean of its filters' ratios, so the fine structure within a filter
    stays as it is.

    Args:
        filters: [C, bins], not negative.
        mel: mel magnitudes [T, C].
    """

    def __init__(self, filters: Tensor, mel: Tensor):
        used = filters.any(0).nonzero().flatten().tolist()
        self.n_bins = used[-1] + 1 if used else 0
        filters = filters[:, : self.n_bins]
        self.mel = mel
        self.to_mel = filters.T.contiguous()
        self.to_bins = filters / filters.sum(0).clamp(min=_TINY)

    def update(self, magnitude: Tensor) -> Tensor:
        """One update of magnitudes [T, n_bins]; bins outside every filter become 0."""
        ratio = self.mel / (magnitude @ self.to_mel).clamp(min=_TINY)
        return magnitude * (ratio @ self.to_bins)


def level_above(mel: Tensor, filters: Tensor, config: MelConfig) -> Tensor:
    """Mel [T, C] -> the level of each bin [T, bins], had the spectrum above mel_fmax the level that it has just below.

    A mel does not tell what is above mel_fmax. Fricatives reach far above 8 kHz, and are dull without. The level falls
    by 12 dB an octave, about as in the loud fricatives of three speakers.
    """
    bins = torch.linspace(0, config.sampling_rate / 2, filters.size(1), device=mel.device)
    width = filters.sum(1)
    centre = filters @ bins / width.clamp(min=_TINY)
    top = (centre >= centre.max().clamp(max=_TOP * config.fmax)) & (width > 0)
    if not top.any():
        return mel.new_zeros(len(mel), len(bins))
    level = (mel[:, top] / width[top]).mean(1, keepdim=True)
    return level * (config.fmax / bins.clamp(min=config.fmax)) ** 2
