"""LSTM cell with dropout and zoneout in PyTorch."""

import torch
from torch import Tensor

from .philox import dropped_words, philox4x32, random_seed

MASK_STREAM = 0x6C73746D
"""Fourth word of the masks' Philox counters, unique to this operation."""


def lstm_cell(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    p_dropout_h: float = 0.0,
    p_dropout_c: float = 0.0,
    p_zoneout_h: float = 0.0,
    p_zoneout_c: float = 0.0,
    training: bool = True,
    seed: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Hochreiter & Schmidhuber 1997: torch.lstm_cell, then zoneout, then dropout. Arguments as `kernels.lstm_cell`."""
    next_h, next_c = torch.lstm_cell(x, (h, c), weight_ih, weight_hh, bias_ih, bias_hh)
    p_dropout, p_zoneout = (p_dropout_h, p_dropout_c), (p_zoneout_h, p_zoneout_c)
    if training and any((*p_dropout, *p_zoneout)):
        below = _masks((*p_dropout, *p_zoneout), next_h, random_seed(x.device) if seed is None else seed)
    results = []
    for k, (previous, new) in enumerate(((h, next_h), (c, next_c))):
        previous = previous.to(new.dtype)  # they differ under autocast
        if p_zoneout[k] > 0:
            p = p_zoneout[k]
            new = torch.where(below[2 + k], previous, new) if training else p * previous + (1 - p) * new
        if p_dropout[k] > 0 and training:
            new = new.masked_fill(below[k], 0.0) / (1 - p_dropout[k])
        results.append(new)
    return results[0], results[1]


def _masks(probabilities: tuple[float, ...], next_h: Tensor, seed: int | Tensor) -> list[Tensor]:
    """Where uniform 24-bit values are below the probabilities: four masks of the shape of `next_h`.

    Element i in row-major order takes the four words of Philox at counter (i mod 2^32, i div 2^32, 0, stream).
    """
    device = next_h.device
    i = torch.arange(next_h.numel(), device=device).view(next_h.shape)
    if not isinstance(seed, Tensor):
        seed = torch.full((), seed, dtype=torch.int64, device=device)
    zero, stream = torch.zeros_like(seed), torch.full_like(seed, MASK_STREAM)
    words = philox4x32((i & 0xFFFFFFFF, i >> 32, zero, stream), (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    return [(word >> 8) < dropped_words(p) for word, p in zip(words, probabilities, strict=True)]
