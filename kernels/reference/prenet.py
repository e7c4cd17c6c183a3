"""Tacotron 2's prenet (Shen et al. 2018, section 2.2), with dropout in inference too."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from .philox import uniform_noise


def prenet(
    x: Tensor,
    weights: Sequence[Tensor],
    p_dropout: float,
    noise: Tensor | Sequence[Tensor] | None = None,
    *,
    seeds: Tensor | None = None,
    start: int = 0,
) -> Tensor:
    """Arguments as `kernels.prenet`; `noise` may be a list of a tensor per layer."""
    if seeds is not None:
        noise = prenet_noise(seeds, [len(weight) for weight in weights], start, x.shape[1] if x.dim() == 3 else 1)
        noise = [values.view(*x.shape[:-1], values.shape[-1]) for values in noise]
    for i, weight in enumerate(weights):
        x = F.relu(F.linear(x, weight))
        if noise is None:
            x = F.dropout(x, p_dropout, training=True)
        elif p_dropout > 0:
            x = x * (noise[i] >= p_dropout) / (1 - p_dropout)
    return x


def prenet_noise(seeds: Tensor, widths: Sequence[int], start: int, steps: int) -> list[Tensor]:
    """Uniform noise for `steps` decoder steps from `start` on: float32 [B, steps, width] per layer.

    Layer i draws from stream i of the seeds, int64 [B].
    """
    return [uniform_noise(seeds, layer, start, steps, width) for layer, width in enumerate(widths)]
