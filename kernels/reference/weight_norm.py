"""Weight normalisation (Salimans & Kingma 2016)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def weight_norm(v: Tensor, g: Tensor) -> Tensor:
    """Arguments as `kernels.weight_norm`."""
    return torch._weight_norm(v, g, 0)


def weight_norm_packed(
    groups: Sequence[Sequence[tuple[Tensor, Tensor]]], dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Arguments as `kernels.weight_norm_packed`."""
    dtype = groups[0][0][0].dtype if dtype is None else dtype
    matrices = []
    for group in groups:
        weights = [weight_norm(_widened(v), _widened(g)).transpose(1, 2).flatten(1) for v, g in group]
        matrices.append((weights[0] if len(weights) == 1 else torch.cat(weights, dim=1)).to(dtype))
    return matrices


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
