"""Convolutions of signals that may have no positions, which PyTorch refuses."""

import torch.nn.functional as F
from torch import Tensor


def conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, padding: int = 0, dilation: int = 1) -> Tensor:
    """F.conv1d that keeps the length; of no positions it is [B, out, 0], and gradients are zero."""
    if x.shape[2]:
        return F.conv1d(x, weight, bias, padding=padding, dilation=dilation)
    return F.conv1d(F.pad(x, (0, 1)), weight, bias, padding=padding, dilation=dilation)[..., :0]


def windows(x: Tensor, taps: int) -> Tensor:
    """[..., T] -> [..., T, taps]: the window around each position, zeros outside; T may be 0."""
    T, half = x.shape[-1], (taps - 1) // 2
    return F.pad(x, (half, half + (T == 0))).unfold(-1, taps, 1)[..., :T, :]
