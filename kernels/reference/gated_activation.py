"""The gated activation unit of WaveNet (van den Oord et al. 2016, section 2.3)."""

import torch
from torch import Tensor


def gated_activation(a: Tensor, b: Tensor | None = None) -> Tensor:
    """tanh of the first half of the channels of `a + b` times the sigmoid of the second half.

    Args:
        a: [B, 2C, T].
        b: [B, 2C, T], or [B, 2C, 1] to broadcast over time, or absent.

    Returns:
        [B, C, T], dtype of `a`.
    """
    activation = a if b is None else a + b
    filter_half, gate_half = activation.chunk(2, dim=1)
    return torch.tanh(filter_half) * torch.sigmoid(gate_half)
