"""Linear magnitudes from mel magnitudes."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fastglow.audio.config import MelConfig
from fastglow.audio.mel import mel_filterbank

_TINY = 1e-10

# Channels whose centres are above this fraction of mel_fmax tell the level above it.
_TOP = 7 / 8

# Channels of a band of filters: few zeros, and whole vectors of any processor.
_BAND = 32


class _Band(NamedTuple):
    """Some bins and the channels of all filters that they are in."""

    bins: slice
    channels: slice
    to_mel: Tensor  # [bins, channels]
    to_bins: Tensor  # [channels, bins]


class MelConstraint:
    """Moves linear magnitudes towards those whose mel is given, in the bins up to the last filter's.

    Lee & Seung's multiplicative updates (2001): none increases the Kullback-Leibler divergence of the magnitudes' mel
    from the given one. A bin is scaled by a weighted mean of its filters' ratios, so the fine structure within a filter
    stays as it is.

    Args:
        filters: [C, bins], not negative. As in `mel_filterbank`, a bin is in two neighbouring ones at most.
    """

    def __init__(self, filters: Tensor):
        self.filters = filters
        used = filters.any(0).nonzero().flatten().tolist()
        self.n_bins = used[-1] + 1 if used else 0
        filters = filters[:, : self.n_bins]
        shares = filters / filters.sum(0).clamp(min=_TINY)
        # Most of the filterbank is zeros: products with bands of it take half the time.
        firsts = torch.arange(0, len(filters), _BAND - 1, device=filters.device)
        lowest = filters.gt(0).int().argmax(0).cummax(0).values
        edges = [*torch.searchsorted(lowest, firsts).tolist(), self.n_bins]
        self.bands = []
        for first, (start, end) in zip(firsts.tolist(), pairwise(edges), strict=True):
            first = max(0, min(first, len(filters) - _BAND))
            channels, bins = slice(first, first + _BAND), slice(start, end)
            band = _Band(bins, channels, filters[channels, bins].T.contiguous(), shares[channels, bins].contiguous())
            self.bands.append(band)

    def update(self, magnitude: Tensor, mel: Tensor) -> None:
        """Updates magnitudes [T, n_bins], in place, given mel magnitudes [T, C]. Bins outside every filter become 0.

        The result does not depend on the level of the magnitudes.
        """
        found = torch.zeros_like(mel)
        for band in self.bands:
            found[:, band.channels].addmm_(magnitude[:, band.bins], band.to_mel)
        ratio = mel / found.clamp_(min=_TINY)
        for band in self.bands:
            magnitude[:, band.bins] *= ratio[:, band.channels] @ band.to_bins


@lru_cache(maxsize=8)
def mel_constraint(config: MelConfig, device: torch.device) -> MelConstraint:
    """For mels of this config, fp32."""
    return MelConstraint(torch.from_numpy(mel_filterbank(config)).to(device, torch.float32))


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
