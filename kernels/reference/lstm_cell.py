"""LSTM cell (Hochreiter & Schmidhuber 1997) with PyTorch's gate order i, f, g, o."""

import torch
from torch import Tensor

from .philox import dropped_words, philox4x32, random_seed

MASK_STREAM = 0x6C73746D
"""Fourth word of the counters of the masks: no other random number of a seed has it."""


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
    """One step of an LSTM: torch.lstm_cell, then zoneout, then dropout.

    Args:
        x: input, [B, n_in]; h, c: hidden and cell state, [B, n].
        weight_ih: [4n, n_in]; weight_hh: [4n, n]; bias_ih, bias_hh: [4n], both or neither.
        p_dropout_h, p_dropout_c: probability of dropping a unit of h' or c'; the others are divided by 1 - p.
            Without training there is no dropout.
        p_zoneout_h, p_zoneout_c: probability that a unit of h' or c' keeps its previous value; without training
            it becomes the expectation, p previous + (1 - p) next.
        seed: of the masks, an integer or a 0-d int64 tensor on the device of `x`; None: drawn from PyTorch's
            generator.

    Returns:
        (h', c'), each [B, n].
    """
    next_h, next_c = torch.lstm_cell(x, (h, c), weight_ih, weight_hh, bias_ih, bias_hh)
    p_dropout, p_zoneout = (p_dropout_h, p_dropout_c), (p_zoneout_h, p_zoneout_c)
    if training and any((*p_dropout, *p_zoneout)):
        below = _masks((*p_dropout, *p_zoneout), next_h, random_seed(x.device) if seed is None else seed)
    results = []
    for k, (previous, new) in enumerate(((h, next_h), (c, next_c))):
        previous = previous.to(new.dtype)  # another one under autocast
        if p_zoneout[k] > 0:
            p = p_zoneout[k]
            new = torch.where(below[2 + k], previous, new) if training else p * previous + (1 - p) * new
        if p_dropout[k] > 0 and training:
            new = new.masked_fill(below[k], 0.0) / (1 - p_dropout[k])
        results.append(new)
    return results[0], results[1]


def _masks(probabilities: tuple[float, ...], next_h: Tensor, seed: int | Tensor) -> list[Tensor]:
    """Four masks of the shape of `next_h`, where uniform numbers of 24 bits are below the probabilities.

    Element i in row-major order has the four words of Philox at counter (i mod 2^32, i div 2^32, 0, stream).
    """
    device = next_h.device
    i = torch.arange(next_h.numel(), device=device).view(next_h.shape)
    if not isinstance(seed, Tensor):
        seed = torch.full((), seed, dtype=torch.int64, device=device)
    zero, stream = torch.zeros_like(seed), torch.full_like(seed, MASK_STREAM)
    words = philox4x32((i & 0xFFFFFFFF, i >> 32, zero, stream), (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    return [(word >> 8) < dropped_words(p) for word, p in zip(words, probabilities, strict=True)]
