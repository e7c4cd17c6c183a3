"""Tacotron 2's prenet, two layers in one kernel, forward and backward.

Maths, layout and cost: kernels/README.md.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastglow.errors import FastglowError

from .. import backend
from ..arguments import (
    check_at_least,
    check_probability,
    check_seeds,
    check_shape,
    dtype_name,
    mixed_dtypes,
)
from ..reference.philox import random_seed
from ..reference.prenet import prenet as reference_prenet
from .kernels import LAYERS_PER_LAUNCH, OP, prenet_operator


def prenet(
    x: Tensor,
    weights: Sequence[Tensor],
    p_dropout: float,
    noise: Tensor | None = None,
    *,
    seeds: Tensor | None = None,
    start: int = 0,
) -> Tensor:
    """Linear layers without bias, each followed by ReLU and dropout, which is on in inference too.

    Under autocast x and the weights are cast as by a linear layer.

    Args:
        x: [..., n_in], any strides; with seeds [B, steps, n_in], or [B, n_in] for one step.
        weights: [n_out, n_in] per layer, any number of layers, dtype of `x`.
        p_dropout: probability of dropping a unit, in [0, 1); kept units are divided by 1 - p_dropout.
        noise: uniform values in [0, 1), float32 [n_layers, ..., n_out], for layers of one width: a unit is kept
            where the noise is at least `p_dropout`.
        seeds: [B] int64, instead of noise: the noise of a unit depends only on the seed of its item, the layer, the
            decoder step and the unit (`uniform_noise`). Without noise and seeds, a seed is drawn from PyTorch's
            generator.
        start: the decoder step of the first step in x.

    Returns:
        [..., n_out of the last layer].

    Raises:
        FastglowError: shapes, p_dropout, noise or seeds that do not fit.

    Source: Shen et al. 2018, "Natural TTS synthesis by conditioning WaveNet on mel spectrogram predictions",
    section 2.2.
    """
    _check(x, weights, p_dropout, noise, seeds, start)
    dtype = backend.autocast_dtype(x)
    if dtype is not None:
        x, weights = x.to(dtype), [weight.to(dtype) for weight in weights]
    if not backend.picks_triton(OP, x, *weights, noise, seeds, unsupported=_unsupported(x, weights, noise)):
        return reference_prenet(x, weights, p_dropout, noise, seeds=seeds, start=start)
    h = x.reshape(-1, x.shape[-1])
    if p_dropout == 0:
        noise = seeds = None
    elif noise is not None:
        noise = noise.reshape(len(weights), len(h), noise.shape[-1])
    elif seeds is None:
        seeds = random_seed(x.device).view(1)
    for i in range(0, len(weights), LAYERS_PER_LAUNCH):
        layers = slice(i, i + LAYERS_PER_LAUNCH)
        h = prenet_operator(h, weights[layers], None if noise is None else noise[layers], seeds, p_dropout, start, i)[
            -1
        ]
    return h.view(*x.shape[:-1], h.shape[1])


def _unsupported(x: Tensor, weights: Sequence[Tensor], noise: Tensor | None) -> str | None:
    if noise is not None and noise.dtype != torch.float32:
        return f"noise has dtype {dtype_name(noise.dtype)}, must be float32"
    return mixed_dtypes(x, *weights)


def _check(
    x: Tensor,
    weights: Sequence[Tensor],
    p_dropout: float,
    noise: Tensor | None,
    seeds: Tensor | None,
    start: int,
) -> None:
    if not weights:
        raise FastglowError("weights is empty: pass one [n_out, n_in] per layer")
    n = x.shape[-1]
    for i, weight in enumerate(weights):
        check_shape(f"weights[{i}]", weight, ("n_out", n))
        n = len(weight)
    check_probability("p_dropout", p_dropout)
    if noise is not None and seeds is not None:
        raise FastglowError("both noise and seeds are given: pass one of them")
    if noise is not None:
        widths = {len(weight) for weight in weights}
        if len(widths) > 1:
            raise FastglowError(f"noise needs layers of one width, these have {sorted(widths)}: pass seeds")
        check_shape("noise", noise, (len(weights), *x.shape[:-1], n))
    if seeds is not None:
        if x.dim() not in (2, 3):
            raise FastglowError(f"with seeds, x has shape {list(x.shape)}, must be [B, steps, n_in] or [B, n_in]")
        check_seeds(seeds, len(x))
    check_at_least("start", start, 0)
