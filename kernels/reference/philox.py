"""Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

A value depends only on its key and its position, not on order, batch or device: one seed gives one result everywhere.
"""

import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)


def random_seed(device: torch.device) -> Tensor:
    """A 0-d int64 seed from PyTorch's generator of the device, without a host sync."""
    return torch.randint(2**62, (), device=device)


def dropped_words(p_dropout: float) -> int:
    """How many of the 2^24 possible random values drop their element."""
    return math.ceil(p_dropout * 2**24)


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox on int64 tensors that each hold 32-bit words and broadcast against each other."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        # The 64-bit products wrap as signed integers, which does not change their 32-bit words.
        p0, p1 = x0 * _MULTIPLIERS[0], x2 * _MULTIPLIERS[1]
        x0, x1, x2, x3 = (
            ((p1 >> 32) & _MASK) ^ x1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ x3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _KEY_INCREMENTS[0]) & _MASK, (k1 + _KEY_INCREMENTS[1]) & _MASK
    return x0, x1, x2, x3


def _random_words(seeds: Tensor, stream: int, start: int | Tensor, rows: int, columns: int) -> Tensor:
    """[B, rows, columns] of 32-bit words; row i of an item depends only on its seed, `stream` and start + i."""
    device = seeds.device
    first = start.view(-1, 1, 1) if isinstance(start, Tensor) else start
    row = torch.arange(rows, device=device).view(1, rows, 1) + first
    block = torch.arange((columns + 3) // 4, device=device).view(1, 1, -1)
    seeds = seeds.view(-1, 1, 1)
    counter = (block, row & _MASK, row >> 32, torch.full_like(block, stream))
    words = philox4x32(counter, (seeds & _MASK, (seeds >> 32) & _MASK))
    return torch.stack(words, dim=-1).flatten(2)[:, :, :columns]


def uniform_noise(seeds: Tensor, stream: int, start: int | Tensor, rows: int, columns: int) -> Tensor:
    """Uniform values in [0, 1) with 24 random bits.

    Args:
        seeds: [B] int64, one per item.
        stream: which of the independent sequences of a seed, 0 to 2^32 - 1.
        start: position of the first row (a frame, a group of samples), one for all items or [B] int64.
        rows: number of positions.
        columns: number of values per position.

    Returns:
        float32 [B, rows, columns].
    """
    return (_random_words(seeds, stream, start, rows, columns) >> 8).float() * 2.0**-24


def normal_noise(seeds: Tensor, stream: int, start: int | Tensor, rows: int, columns: int) -> Tensor:
    """Standard normal values by Box-Muller from two words each; arguments as in `uniform_noise`.

    Returns:
        float32 [B, rows, columns].
    """
    words = _random_words(seeds, stream, start, rows, 2 * columns)
    u1 = ((words[:, :, 0::2] >> 8).double() + 1.0) * 2.0**-24  # in (0, 1], so that the logarithm is finite
    u2 = (words[:, :, 1::2] >> 8).double() * 2.0**-24
    return (torch.sqrt(-2.0 * torch.log(u1)) * torch.cos(2.0 * math.pi * u2)).float()
