"""Affine coupling (Dinh et al. 2016, RealNVP), with b before log s as in WaveGlow (Prenger et al. 2018)."""

import torch
from torch import Tensor

from .convolution import conv1d


def affine_coupling(x: Tensor, b_log_s: Tensor, *, return_log_s_sum: bool = False) -> tuple[Tensor, ...]:
    """Arguments as `kernels.affine_coupling`."""
    b, log_s = b_log_s.chunk(2, dim=1)
    y = torch.exp(log_s) * x + b
    if not return_log_s_sum:
        return y, log_s
    return y, log_s, log_s.sum(dtype=torch.promote_types(log_s.dtype, torch.float32))


def affine_coupling_inverse(y: Tensor, b_log_s: Tensor) -> Tensor:
    """Arguments as `kernels.affine_coupling_inverse`."""
    b, log_s = b_log_s.chunk(2, dim=1)
    return (y - b) / torch.exp(log_s)


def flow_step_inverse(
    kept: Tensor,
    changed: Tensor,
    b_log_s: Tensor,
    inverse: Tensor,
    entering: Tensor | None = None,
    *,
    swap: bool = False,
) -> Tensor:
    """Arguments as `kernels.flow_step_inverse`."""
    inverted = affine_coupling_inverse(changed, b_log_s)
    z = torch.cat((inverted, kept) if swap else (kept, inverted), dim=1)
    z = conv1d(z, inverse.unsqueeze(2).to(z.dtype)).to(changed.dtype)
    return z if entering is None else torch.cat((entering.to(z.dtype), z), dim=1)
