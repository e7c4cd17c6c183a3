"""Tacotron 2's prenet (Shen et al. 2018, section 2.2): its dropout is part of the model and always on."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def prenet(x: Tensor, weights: Sequence[Tensor], p_dropout: float, noise: Tensor | None = None) -> Tensor:
    """Linear layers without bias, each followed by ReLU and dropout.

    Args:
        x: [..., n_in].
        weights: one [n_out, n_in] a layer.
        p_dropout: probability of dropping a unit, in training and in inference.
        noise: uniform numbers in [0, 1), [n_layers, ..., n_out]: a unit is kept where its number is
            at least `p_dropout`. Absent: drawn from PyTorch's generator.

    Returns:
        [..., n_out of the last layer].
    """
    for i, weight in enumerate(weights):
        x = F.relu(F.linear(x, weight))
        if noise is None:
            x = F.dropout(x, p_dropout, training=True)
        elif p_dropout > 0:
            x = x * (noise[i] >= p_dropout) / (1 - p_dropout)
    return x
