"""Invertible 1x1 convolution of c <= 16 channels: products with W and W^-1, and the factors log|det W| and W^-1.

`product` has the kernels of W z and W^-1 z, `factors` those of the factors. Maths, layout and cost:
kernels/README.md.
"""

from collections.abc import Sequence

from torch import Tensor

from fastglow.errors import FastglowError

from .. import backend
from ..arguments import check_floats, check_one_dtype, check_shape, mixed_dtypes
from ..reference import invertible_conv1x1 as reference
from .factors import OP, factors, split_inverses
from .product import product

MAX_CHANNELS = 16
"""A thread holds whole columns of a signal: longer ones do not fit in its registers."""


def invertible_conv1x1_factors(weights: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """W^-1 and log|det W| of several flows, in one launch.

    A singular W has log|det| = -inf, as in torch.linalg.slogdet, and a finite but meaningless "inverse", computed with
    zero pivots replaced by 1. The kernel treats pivots below 2^-126 as 0. Autocast has no effect.

    Args:
        weights: at least one, [c, c, 1] each; c may differ between them.

    Returns:
        (inverses, [c, c] each; log|det W| per group of channels, [len(weights)]), float32 (float64 for float64);
        both differentiable.

    Raises:
        FastglowError: no weights, or one of another shape.

    Source: Kingma & Dhariwal 2018, Glow, section 3.2.
    """
    weights = list(weights)
    if not weights:
        raise FastglowError("weights is empty: pass at least one")
    for weight in weights:
        _check_weight(weight)
    if not backend.picks_triton(OP, *weights, unsupported=_unsupported(*weights)):
        return reference.invertible_conv1x1_factors(weights)
    inverses, log_dets = factors(weights)
    return split_inverses(inverses, weights), log_dets


def invertible_conv1x1(z: Tensor, weight: Tensor, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """W z and log|det W|.

    Under autocast z and the weight are cast as by conv1d; log|det W| is of the weight before the cast.

    Args:
        z: [B, c, T]; any strides.
        weight: [c, c, 1], dtype of `z` unless autocast is on.
        log_det: scalar, one entry of the log|det W| of `invertible_conv1x1_factors`, if it is known already.

    Returns:
        (W z [B, c, T]; log|det W| per group of channels: a scalar, float32 (float64 for float64), or `log_det`).

    Raises:
        FastglowError: shapes or dtypes that do not fit.

    Source: Kingma & Dhariwal 2018, Glow, section 3.2.
    """
    _check_weight(weight)
    check_shape("z", z, ("B", len(weight), "T"))
    if log_det is not None and log_det.dim():
        raise FastglowError(f"log_det has shape {list(log_det.shape)}, must be one entry, a scalar")
    if backend.autocast_dtype(z) is None:
        check_one_dtype(z=z, weight=weight)
    if not backend.picks_triton(OP, z, weight, log_det, unsupported=_unsupported(weight)):
        return reference.invertible_conv1x1(z, weight, log_det)
    if log_det is None:
        log_det = invertible_conv1x1_factors([weight])[1][0]
    return product(z, weight.squeeze(2), backend.autocast_dtype(z) or z.dtype), log_det


def invertible_conv1x1_inverse(z: Tensor, weight: Tensor, inverse: Tensor | None = None) -> Tensor:
    """W^-1 z; the inverse is computed in float32 (float64 for float64) and cast as by conv1d.

    Args:
        z: [B, c, T]; any strides.
        weight: [c, c, 1], the weight of the forward direction.
        inverse: [c, c], an inverse from `invertible_conv1x1_factors`, if it is known already; then `weight` is
            not read.

    Returns:
        [B, c, T], dtype of `z`, or of autocast.

    Raises:
        FastglowError: shapes or dtypes that do not fit.

    Source: Kingma & Dhariwal 2018, Glow, section 3.2.
    """
    _check_weight(weight)
    c = len(weight)
    check_shape("z", z, ("B", c, "T"))
    check_shape("inverse", inverse, (c, c))
    check_floats(z=z, weight=weight, inverse=inverse)
    if not backend.picks_triton(OP, z, weight, inverse, unsupported=_unsupported(weight)):
        return reference.invertible_conv1x1_inverse(z, weight, inverse)
    if inverse is None:
        (inverse,), _ = invertible_conv1x1_factors([weight])
    return product(z, inverse, backend.autocast_dtype(z) or z.dtype)


def _check_weight(weight: Tensor) -> None:
    if weight.dim() != 3 or weight.shape != (len(weight), len(weight), 1) or not len(weight):
        raise FastglowError(f"weight has shape {list(weight.shape)}, must be [c, c, 1]")


def _unsupported(*weights: Tensor) -> str | None:
    channels = max(len(weight) for weight in weights)
    if channels > MAX_CHANNELS:
        return f"{channels} channels are more than {MAX_CHANNELS}"
    return mixed_dtypes(*weights)
