"""Invertible 1x1 convolution (Kingma & Dhariwal 2018, Glow, section 3.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .convolution import conv1d


def invertible_conv1x1_factors(weights: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Arguments as `kernels.invertible_conv1x1_factors`.

    NVIDIA's code computes log(det W), which is NaN for a negative determinant.
    """
    matrices = [_matrix(weight) for weight in weights]
    log_dets = torch.stack([torch.linalg.slogdet(matrix).logabsdet for matrix in matrices])
    return [_inverse(matrix) for matrix in matrices], log_dets


def invertible_conv1x1(z: Tensor, weight: Tensor, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Arguments as `kernels.invertible_conv1x1`."""
    if log_det is None:
        log_det = torch.linalg.slogdet(_matrix(weight)).logabsdet
    return conv1d(z, weight), log_det


def invertible_conv1x1_inverse(z: Tensor, weight: Tensor, inverse: Tensor | None = None) -> Tensor:
    """Arguments as `kernels.invertible_conv1x1_inverse`."""
    if inverse is None:
        inverse = _inverse(_matrix(weight))
    return conv1d(z, inverse.unsqueeze(2).to(z.dtype))


def _matrix(weight: Tensor) -> Tensor:
    return weight.squeeze(2).to(torch.promote_types(weight.dtype, torch.float32))


def _inverse(matrix: Tensor) -> Tensor:
    # Unlike torch.linalg.inv: no host sync, and neither an error nor NaN for a singular matrix.
    factors, pivots, _ = torch.linalg.lu_factor_ex(matrix)
    factors = factors + torch.diag((factors.diagonal() == 0).to(factors.dtype))
    return torch.linalg.lu_solve(factors, pivots, torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))
