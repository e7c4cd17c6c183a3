"""Affine coupling (Dinh et al. 2016, RealNVP), with WaveGlow's order of the WN's outputs: b, then log s."""

import torch
from torch import Tensor


def affine_coupling(x: Tensor, b_log_s: Tensor) -> tuple[Tensor, Tensor]:
    """exp(log s) * x + b.

    Args:
        x: the half that is transformed, [B, n, T].
        b_log_s: the coupling network's output, [B, 2n, T], b first.

    Returns:
        (transformed half [B, n, T], log s [B, n, T]).
    """
    b, log_s = b_log_s.chunk(2, dim=1)
    return torch.exp(log_s) * x + b, log_s


def affine_coupling_inverse(y: Tensor, b_log_s: Tensor) -> Tensor:
    """(y - b) / exp(log s), the inverse of `affine_coupling`; shapes as there."""
    b, log_s = b_log_s.chunk(2, dim=1)
    return (y - b) / torch.exp(log_s)
