"""The gated activation unit of WaveNet (van den Oord et al. 2016, section 2.3)."""

import torch
from torch import Tensor

from .philox import dropped_words, philox4x32, random_seed

DROPOUT_STREAM = 0x67617465
"""Fourth word of the counters of the dropout masks: no other random number of a seed has it."""


def gated_activation(
    a: Tensor,
    b: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    channels_last: bool = False,
    gate_first: bool = False,
    dropout: str | None = None,
    p_dropout: float = 0.0,
    seed: int | Tensor | None = None,
) -> Tensor:
    """tanh of one half of the channels of `a + bias + b` times the sigmoid of the other half.

    Args:
        a: [B, 2C, T].
        b: [B, 2C, T], or absent; its B and its T may be 1, to broadcast.
        bias: [2C], or absent.
        channels_last: a and b have their last two dimensions swapped, [B, T, 2C], and so has the result.
        gate_first: the sigmoid's half is the first, as in DiffWave and DiffSinger; else the tanh's is, as in
            WaveGlow, Glow-TTS, VITS, FreeVC and coqui.
        dropout: None; 'before': of `a + bias`, before b is added, as in Glow-TTS and coqui; 'after': of the
            product, as in VITS and FreeVC.
        p_dropout: probability of dropping an element, in [0, 1); the others are divided by 1 - p_dropout.
        seed: of the dropout's mask, an integer or a 0-d int64 tensor on the device of `a`; None: drawn from
            PyTorch's generator.

    Returns:
        [B, C, T], or [B, T, C] if channels_last; dtype: what those of the inputs promote to.
    """
    if channels_last:
        a, b = a.transpose(1, 2), None if b is None else b.transpose(1, 2)
    if dropout is not None and seed is None:
        seed = random_seed(a.device)
    activation = a if bias is None else a + bias.unsqueeze(1)
    if dropout == "before":
        activation = _drop(activation, p_dropout, seed)
    if b is not None:
        activation = activation + b
    filter_half, gate_half = activation.chunk(2, dim=1)
    if gate_first:
        filter_half, gate_half = gate_half, filter_half
    output = torch.tanh(filter_half) * torch.sigmoid(gate_half)
    if dropout == "after":
        output = _drop(output, p_dropout, seed)
    return output.transpose(1, 2) if channels_last else output


def kept_by_dropout(shape: torch.Size, p_dropout: float, seed: int | Tensor, device: torch.device) -> Tensor:
    """Which elements stay: those whose uniform number, of 24 bits, is at least `p_dropout`; bool of `shape`.

    Element i in row-major order has the first word of Philox at counter (i mod 2^32, i div 2^32, 0, stream).
    """
    i = torch.arange(shape.numel(), device=device).view(shape)
    if not isinstance(seed, Tensor):
        seed = torch.full((), seed, dtype=torch.int64, device=device)
    zero, stream = torch.zeros_like(seed), torch.full_like(seed, DROPOUT_STREAM)
    word, *_ = philox4x32((i & 0xFFFFFFFF, i >> 32, zero, stream), (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    return (word >> 8) >= dropped_words(p_dropout)


def _drop(x: Tensor, p_dropout: float, seed: int | Tensor) -> Tensor:
    return x * kept_by_dropout(x.shape, p_dropout, seed, x.device) / (1 - p_dropout)
