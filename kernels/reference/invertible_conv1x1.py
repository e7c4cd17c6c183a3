"""Invertible 1x1 convolution (Kingma & Dhariwal 2018, Glow, section 3.2)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def invertible_conv1x1_factors(weights: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """W^-1 and log|det W| of several flows.

    log|det| is that of the absolute value: a negative determinant is as good as a positive one
    (the reference's logdet gives NaN there). A W whose elimination meets pivots of 0 has log|det| = -inf; its
    "inverse" is finite and of no use: that of W with those pivots replaced by 1.

    Args:
        weights: [c, c, 1] each, not necessarily of one c.

    Returns:
        (inverses, [c, c] each; log|det W| of one group, [len(weights)]), float32 (float64 for float64).
    """
    matrices = [_matrix(weight) for weight in weights]
    log_dets = torch.stack([torch.linalg.slogdet(matrix).logabsdet for matrix in matrices])
    return [_inverse(matrix) for matrix in matrices], log_dets


def invertible_conv1x1(z: Tensor, weight: Tensor, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """W z and log|det W|.

    Args:
        z: [B, c, T].
        weight: [c, c, 1].
        log_det: one entry of `invertible_conv1x1_factors`' log|det W|, if it is known already.

    Returns:
        (W z [B, c, T], log|det W| of one group: a scalar float32 or float64, or `log_det` itself).
    """
    if log_det is None:
        log_det = torch.linalg.slogdet(_matrix(weight)).logabsdet
    return F.conv1d(z, weight), log_det


def invertible_conv1x1_inverse(z: Tensor, weight: Tensor, inverse: Tensor | None = None) -> Tensor:
    """W^-1 z, the inverse taken in float32 (float64 for float64).

    Args:
        z: [B, c, T].
        weight: [c, c, 1], the weight of the forward direction.
        inverse: [c, c], one of `invertible_conv1x1_factors`' inverses, if it is known already; `weight` is
            then not read.

    Returns:
        [B, c, T], dtype of `z`.
    """
    if inverse is None:
        inverse = _inverse(_matrix(weight))
    return F.conv1d(z, inverse.unsqueeze(2).to(z.dtype))


def _matrix(weight: Tensor) -> Tensor:
    return weight.squeeze(2).to(torch.promote_types(weight.dtype, torch.float32))


def _inverse(matrix: Tensor) -> Tensor:
    # Unlike torch.linalg.inv: no look at the values from the host, no error and no NaN for a singular matrix.
    factors, pivots, _ = torch.linalg.lu_factor_ex(matrix)
    factors = factors + torch.diag((factors.diagonal() == 0).to(factors.dtype))
    return torch.linalg.lu_solve(factors, pivots, torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))
