"""Weight normalisation w = g v / |v|, one norm per output channel: of one weight, or of many in one launch.

Maths, layout and cost: kernels/README.md.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastglow.errors import FastglowError

from .. import backend
from ..arguments import check_shape, dtype_name, mixed_dtypes
from ..reference import weight_norm as reference
from .kernels import OP, packed_operator, weight_norm_operator


def weight_norm(v: Tensor, g: Tensor) -> Tensor:
    """g * v / |v|, the norm taken over every dimension but the first; NaN where |v| is 0.

    Args:
        v: direction, [out, in, k]; any strides.
        g: magnitude, [out, 1, 1], dtype of `v`.

    Returns:
        weight, shape and dtype of `v`.

    Raises:
        FastglowError: shapes or dtypes that do not fit.

    Source: Salimans & Kingma 2016, Weight Normalization, equation 2.
    """
    _check(v, g)
    if v.dtype != g.dtype:
        raise FastglowError(f"v has dtype {dtype_name(v.dtype)} and g {dtype_name(g.dtype)}: cast one")
    return weight_norm_operator(v, g) if backend.picks_triton(OP, v, g) else reference.weight_norm(v, g)


def weight_norm_packed(
    groups: Sequence[Sequence[tuple[Tensor, Tensor]]], dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Normalised weights, those of a group side by side in one matrix, as a convolution by GEMM reads them.

    Column `offset_i + tap * in_i + channel` of a group's matrix is [:, channel, tap] of weight i, where `offset_i` is
    the sum of in * k over the weights before it. One launch for all, and one for the backward pass.

    Args:
        groups: pairs (v [out, in, k], g [out, 1, 1]); at least one group, each of at least one pair; all weights of
            a group have the same `out`.
        dtype: of the result; default: of the first v. The arithmetic is float32 (float64 for float64).

    Returns:
        one matrix per group, [out, sum of in * k]: views of one buffer.

    Raises:
        FastglowError: no weights, or shapes that do not fit.

    Source: Salimans & Kingma 2016, Weight Normalization, equation 2.
    """
    if not groups or not all(groups):
        raise FastglowError(f"groups of {[len(group) for group in groups]} weights: none may be empty")
    for group in groups:
        for v, g in group:
            _check(v, g)
        rows = sorted({len(v) for v, _ in group})
        if len(rows) > 1:
            raise FastglowError(f"a group has weights of {rows} output channels, must all have the same number")
    vs = [v for group in groups for v, _ in group]
    gs = [g for group in groups for _, g in group]
    dtype = vs[0].dtype if dtype is None else dtype
    unsupported = mixed_dtypes(*vs, *gs)
    if dtype not in backend.KERNEL_DTYPES:
        unsupported = f"the result is {dtype_name(dtype)}"
    if not backend.picks_triton(OP, *vs, *gs, unsupported=unsupported):
        return reference.weight_norm_packed(groups, dtype)
    flat = packed_operator([len(group) for group in groups], dtype, vs, gs)
    columns = [sum(v.shape[1] * v.shape[2] for v, _ in group) for group in groups]
    shapes = [(len(group[0][0]), n) for group, n in zip(groups, columns, strict=True)]
    parts = flat.split([rows * n for rows, n in shapes])
    return [matrix.view(shape) for matrix, shape in zip(parts, shapes, strict=True)]


def _check(v: Tensor, g: Tensor) -> None:
    check_shape("v", v, ("out", "in", "k"))
    check_shape("g", g, (len(v), 1, 1))
