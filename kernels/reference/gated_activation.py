"""The gated activation unit of WaveNet."""

import torch
from torch import Tensor

from .philox import dropped_words, philox4x32, random_seed

DROPOUT_STREAM = 0x67617465
"""Fourth word of the dropout masks' Philox counters, unique to this operation."""


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
    """van den Oord et al. 2016, "WaveNet", section 2.3. Arguments as `kernels.gated_activation`."""
    if channels_last:
        a, b = a.transpose(1, 2), None if b is None else b.transpose(1, 2)
    if seed is None:
        seed = 0 if dropout is None else random_seed(a.device)
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


def kept_by_dropout(x: Tensor, p_dropout: float, seed: int | Tensor) -> Tensor:
    """Bool of the shape of x: elements whose 24 random bits are at least p_dropout. The counters: kernels/README.md."""
    i = torch.arange(x.numel(), device=x.device).view(x.shape)  # x.shape.numel() would be a constant in torch.export
    if not isinstance(seed, Tensor):
        seed = torch.full((), seed, dtype=torch.int64, device=x.device)
    zero, stream = torch.zeros_like(seed), torch.full_like(seed, DROPOUT_STREAM)
    word, *_ = philox4x32((i & 0xFFFFFFFF, i >> 32, zero, stream), (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    return (word >> 8) >= dropped_words(p_dropout)


def _drop(x: Tensor, p_dropout: float, seed: int | Tensor) -> Tensor:
    return x * kept_by_dropout(x, p_dropout, seed) / (1 - p_dropout)
