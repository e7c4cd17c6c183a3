"""Weight normalisation (Salimans & Kingma 2016)."""

import torch
from torch import Tensor


def weight_norm(v: Tensor, g: Tensor) -> Tensor:
    """g * v / |v|, the norm taken over every dimension but the first.

    Args:
        v: direction, [out, in, k].
        g: magnitude, [out, 1, 1].

    Returns:
        weight, shape and dtype of `v`.
    """
    return torch._weight_norm(v, g, 0)
