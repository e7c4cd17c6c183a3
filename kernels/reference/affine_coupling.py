"""Affine coupling (Dinh et al. 2016, RealNVP), with WaveGlow's order of the WN's outputs: b, then log s."""

import torch
import torch.nn.functional as F
from torch import Tensor


def affine_coupling(x: Tensor, b_log_s: Tensor, *, return_log_s_sum: bool = False) -> tuple[Tensor, ...]:
    """exp(log s) * x + b.

    Args:
        x: the half that is transformed, [B, n, T].
        b_log_s: the coupling network's output, [B, 2n, T], b first.
        return_log_s_sum: also give the sum of log s, the coupling's share of the log-determinant.

    Returns:
        (transformed half [B, n, T], log s [B, n, T]), and, if asked for, the sum of log s over all
        elements: a scalar, float32 (float64 for float64).
    """
    b, log_s = b_log_s.chunk(2, dim=1)
    y = torch.exp(log_s) * x + b
    if not return_log_s_sum:
        return y, log_s
    return y, log_s, log_s.sum(dtype=torch.promote_types(log_s.dtype, torch.float32))


def affine_coupling_inverse(y: Tensor, b_log_s: Tensor) -> Tensor:
    """(y - b) / exp(log s), the inverse of `affine_coupling`; shapes as there."""
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
    """One step of flow backwards, all but its coupling network: coupling, 1x1 convolution, early channels.

    Args:
        kept: the half that conditioned the coupling, [B, c/2, T].
        changed: the half that it changed, [B, c/2, T].
        b_log_s: the coupling network's output, [B, c, T], b first.
        inverse: W^-1 of the 1x1 convolution, [c, c], float32 whatever the dtype of the others.
        entering: channels that left the flow here, [B, e, T], or absent.
        swap: the changed half is the first of the c channels, not the second.

    Returns:
        [B, e + c, T], the entering channels first; dtype of `changed`.
    """
    undone = affine_coupling_inverse(changed, b_log_s)
    z = torch.cat((undone, kept) if swap else (kept, undone), dim=1)
    z = F.conv1d(z, inverse.unsqueeze(2).to(z.dtype)).to(changed.dtype)
    return z if entering is None else torch.cat((entering.to(z.dtype), z), dim=1)
