"""Invertible 1x1 convolution (Kingma & Dhariwal 2018, Glow, section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def invertible_conv1x1(z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """W z and log|det W|.

    log|det| is that of the absolute value: a negative determinant is as good as a positive one
    (the reference's logdet gives NaN there).

    Args:
        z: [B, c, T].
        weight: [c, c, 1].

    Returns:
        (W z [B, c, T], log|det W| of one group, scalar float32 or float64).
    """
    matrix = weight.squeeze(2)
    matrix = matrix if matrix.dtype == torch.float64 else matrix.float()
    return F.conv1d(z, weight), torch.linalg.slogdet(matrix).logabsdet


def invertible_conv1x1_inverse(z: Tensor, weight: Tensor) -> Tensor:
    """W^-1 z, the inverse taken in float32 (float64 for float64).

    Args:
        z: [B, c, T].
        weight: [c, c, 1], the weight of the forward direction.

    Returns:
        [B, c, T], dtype of `z`.
    """
    matrix = weight.squeeze(2)
    matrix = matrix if matrix.dtype == torch.float64 else matrix.float()
    return F.conv1d(z, torch.linalg.inv(matrix).unsqueeze(2).to(z.dtype))
