"""Weight normalisation (Salimans & Kingma 2016)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def weight_norm(v: Tensor, g: Tensor) -> Tensor:
    """g * v / |v|, the norm taken over every dimension but the first; NaN where |v| is 0.

    Args:
        v: direction, [out, in, k].
        g: magnitude, [out, 1, 1].

    Returns:
        weight, shape and dtype of `v`.
    """
    return torch._weight_norm(v, g, 0)


def weight_norm_packed(
    groups: Sequence[Sequence[tuple[Tensor, Tensor]]], dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Normalised weights, each group's side by side in one matrix, with the taps of a weight outside its channels.

    Column `offset_i + tap * in_i + channel` of a group's matrix is weight i's [:, channel, tap], where `offset_i` is
    the sum of in * k over the weights before it: the order in which a convolution as one matrix product wants them.

    Args:
        groups: pairs (v [out, in, k], g [out, 1, 1]); one `out` in a group.
        dtype: of the result; default: that of the first v.

    Returns:
        one matrix a group, [out, sum of in * k]; the arithmetic is float32 (float64 for float64).
    """
    dtype = groups[0][0][0].dtype if dtype is None else dtype
    matrices = []
    for group in groups:
        weights = [weight_norm(_widened(v), _widened(g)) for v, g in group]
        matrices.append(torch.cat([weight.transpose(1, 2).flatten(1) for weight in weights], dim=1).to(dtype))
    return matrices


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
