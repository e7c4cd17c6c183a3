"""Tacotron 2's prenet (Shen et al. 2018, section 2.2): its dropout is part of the model and always on."""

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
    """Linear layers without bias, each followed by ReLU and dropout.

    Args:
        x: [..., n_in]; with seeds [B, steps, n_in], or [B, n_in] for one step.
        weights: one [n_out, n_in] a layer.
        p_dropout: probability of dropping a unit, in training and in inference.
        noise: uniform numbers in [0, 1), [n_layers, ..., n_out]: a unit is kept where its number is
            at least `p_dropout`.
        seeds: [B] int64, to draw the noise from (`prenet_noise`). Without both: drawn from PyTorch's generator.
        start: the decoder step of x's first.

    Returns:
        [..., n_out of the last layer].
    """
    if seeds is not None:
        noise = prenet_noise(seeds, [len(weight) for weight in weights], start, x.shape[1] if x.dim() == 3 else 1)
        noise = [numbers.view(*x.shape[:-1], -1) for numbers in noise]
    for i, weight in enumerate(weights):
        x = F.relu(F.linear(x, weight))
        if noise is None:
            x = F.dropout(x, p_dropout, training=True)
        elif p_dropout > 0:
            x = x * (noise[i] >= p_dropout) / (1 - p_dropout)
    return x


def prenet_noise(seeds: Tensor, widths: Sequence[int], start: int, steps: int) -> list[Tensor]:
    """Uniform numbers for the dropout: each depends on the item's seed, the layer, the decoder step and the unit.

    Args:
        seeds: [B] int64.
        widths: units of each layer.
        start: the first decoder step; steps: how many.

    Returns:
        float32 [B, steps, width] of each layer: sequence `layer` of the seed.
    """
    return [uniform_noise(seeds, layer, start, steps, width) for layer, width in enumerate(widths)]
