"""W^-1 and log|det W| of many matrices in one launch, forward and backward.

Maths, layout and cost: kernels/README.md.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..graphs import integer_table, pointer_table
from ..launch import Config, launch
from ..operators import differentiable, operator, reference_gradients
from ..reference import invertible_conv1x1 as reference

OP = "invertible_conv1x1"
ELEMENTS = 512  # per program, over all its matrices
ELEMENTS_PER_WARP = 64
# Of a padded matrix: for a single 2x2 matrix the compiler unrolls everything and spills (sm_100, Triton 3.7.1).
SMALLEST_SIZE = 4
SMALLEST_NORMAL = tl.constexpr(2.0**-126)  # has a finite reciprocal; tl.log treats smaller values as 0


@triton.jit
def _product(a, b):
    """a b rounded, and its rounding error, both exact: 12-bit halves of a significand have exact products."""
    p = a * b
    a_hi = (a.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)
    b_hi = (b.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)
    a_lo, b_lo = a - a_hi, b - b_hi
    return p, ((a_hi * b_hi - p) + a_hi * b_lo + a_lo * b_hi) + a_lo * b_lo


@triton.jit
def _sum(a, a_lo, b, b_lo):
    """The sum of two values with their errors, again as a value and its error."""
    s = a + b
    t = s - a
    error = (a - (s - t)) + (b - t) + (a_lo + b_lo)
    hi = s + error
    return hi, error - (hi - s)


@triton.jit
def _quotient(a, a_lo, b, b_lo):
    """The quotient of two values with their errors, again as a value and its error."""
    q = a / b
    p, error = _product(q, b)
    q_lo = (((a - p) - error) + a_lo - q * b_lo) / b
    hi = q + q_lo
    return hi, q_lo - (hi - q)


@triton.jit
def invertible_conv1x1_factors_fwd_kernel(
    p_pointers, p_layout, p_typed, p_inverses, p_log_dets, n, BN: tl.constexpr, BC: tl.constexpr
):
    """Gauss-Jordan elimination in place, without swapping rows; to be compiled without fused multiply-adds.

    The row of pivot k ends as row k of W^-1, and column k as the column of W^-1 with that row's index.

    Args:
        p_pointers: [n] int64, addresses of the weights; p_typed: any of them, for the dtype, which they share.
        p_layout: [n, 4] int64, see `_layout`.
        p_inverses: float32, all inverses one after the other; p_log_dets: [n] float32.
    """
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
    m_n = o_n < n
    p_w = tl.load(p_pointers + o_n, mask=m_n, other=0).to(p_typed.dtype)[:, None, None]  # [BN, 1, 1]
    b_c = tl.load(p_layout + 4 * o_n, mask=m_n, other=0).to(tl.int32)  # [BN]
    b_wi = tl.load(p_layout + 4 * o_n + 1, mask=m_n, other=0)[:, None, None]
    b_wj = tl.load(p_layout + 4 * o_n + 2, mask=m_n, other=0)[:, None, None]
    b_offset = tl.load(p_layout + 4 * o_n + 3, mask=m_n, other=0)[:, None, None]
    o_c = tl.arange(0, BC)
    o_i, o_j = o_c[None, :, None], o_c[None, None, :]
    m_w = (o_i < b_c[:, None, None]) & (o_j < b_c[:, None, None])  # [BN, BC, BC]
    b_w = tl.load(p_w + o_i * b_wi + o_j * b_wj, mask=m_w, other=0.0).to(tl.float32)

    b_x = tl.where(m_w, b_w, (o_i == o_j).to(tl.float32))
    b_x_lo = tl.zeros((BN, BC, BC), tl.float32)
    b_step = tl.full((BN, BC), -1, tl.int32)  # per row, the step in which it was the pivot row
    b_source = tl.zeros((BN, BC), tl.int32)  # per column, its pivot row
    b_log_det = tl.zeros((BN,), tl.float32)
    for k in range(BC):
        b_column = tl.sum(tl.where(o_j == k, b_x, 0.0), axis=2)  # [BN, BC]
        b_column_lo = tl.sum(tl.where(o_j == k, b_x_lo, 0.0), axis=2)
        # NaN is picked as the pivot before any number, so that it reaches the determinant.
        b_size = tl.where(b_column == b_column, tl.abs(b_column), float("inf"))
        i_pivot = tl.argmax(tl.where(b_step < 0, b_size, -1.0), axis=1)[:, None]  # [BN, 1]
        is_pivot = o_c[None, :] == i_pivot  # [BN, BC]
        b_step = tl.where(is_pivot, k, b_step)
        b_source = tl.where(o_c[None, :] == k, i_pivot, b_source)
        b_pivot = tl.sum(tl.where(is_pivot, b_column, 0.0), axis=1)  # [BN]
        b_pivot_lo = tl.sum(tl.where(is_pivot, b_column_lo, 0.0), axis=1)
        vanishes = tl.abs(b_pivot) < SMALLEST_NORMAL
        b_pivot = tl.where(vanishes, 1.0, b_pivot)
        b_pivot_lo = tl.where(vanishes, 0.0, b_pivot_lo)
        b_log_det += tl.where(vanishes, float("-inf"), tl.log(tl.abs(b_pivot)) + b_pivot_lo / b_pivot)

        b_row = tl.sum(tl.where(is_pivot[:, :, None], b_x, 0.0), axis=1)  # [BN, BC]
        b_row_lo = tl.sum(tl.where(is_pivot[:, :, None], b_x_lo, 0.0), axis=1)
        b_row = tl.where(o_c[None, :] == k, 1.0, b_row)
        b_row_lo = tl.where(o_c[None, :] == k, 0.0, b_row_lo)
        # Dividing the column, not the row, cannot overflow in rows that have not been pivot rows yet.
        b_factor, b_factor_lo = _quotient(b_column, b_column_lo, b_pivot[:, None], b_pivot_lo[:, None])
        b_scaled, b_scaled_lo = _quotient(b_row, b_row_lo, b_pivot[:, None], b_pivot_lo[:, None])
        b_p, b_error = _product(b_factor[:, :, None], b_row[:, None, :])  # [BN, BC, BC]
        b_error += b_factor[:, :, None] * b_row_lo[:, None, :] + b_factor_lo[:, :, None] * b_row[:, None, :]
        b_x, b_x_lo = _sum(tl.where(o_j == k, 0.0, b_x), tl.where(o_j == k, 0.0, b_x_lo), -b_p, -b_error)
        b_x = tl.where(is_pivot[:, :, None], b_scaled[:, None, :], b_x)
        b_x_lo = tl.where(is_pivot[:, :, None], b_scaled_lo[:, None, :], b_x_lo)

    o_row, o_column = b_step[:, :, None], b_source[:, None, :]
    m_x = (o_row < b_c[:, None, None]) & (o_column < b_c[:, None, None])
    tl.store(p_inverses + b_offset + o_row * b_c[:, None, None] + o_column, b_x, mask=m_x)
    tl.store(p_log_dets + o_n, b_log_det, mask=m_n)


@triton.jit
def invertible_conv1x1_factors_bwd_kernel(
    p_layout, p_inverses, p_d_inverses, p_d_log_dets, p_dw, s_d_log_det, n, BN: tl.constexpr, BC: tl.constexpr
):
    """Gradients of the weights.

    Args:
        p_layout: [n, 4] int64, see `_layout`.
        p_inverses, p_d_inverses, p_dw: matrices one after the other, at the offsets of the layout.
        p_d_log_dets: [n], s_d_log_det apart. It or `p_d_inverses` may be None.
    """
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
    m_n = o_n < n
    b_c = tl.load(p_layout + 4 * o_n, mask=m_n, other=0)[:, None]  # [BN, 1]
    b_offset = tl.load(p_layout + 4 * o_n + 3, mask=m_n, other=0)[:, None]
    o_c = tl.arange(0, BC)[None, :]  # [1, BC]
    m_c = o_c < b_c  # [BN, BC]
    m_tile = m_c[:, :, None] & m_c[:, None, :]
    b_dw = tl.zeros((BN, BC, BC), tl.float32)
    if p_d_inverses is not None:
        b_half = tl.zeros((BN, BC, BC), tl.float32)  # W^-T dInverse
        for k in range(BC):
            o_row = b_offset + k * b_c + o_c
            b_x = tl.load(p_inverses + o_row, mask=m_c & (k < b_c), other=0.0)  # [BN, BC]
            b_d = tl.load(p_d_inverses + o_row, mask=m_c & (k < b_c), other=0.0)
            b_half += b_x[:, :, None] * b_d[:, None, :]
        for k in range(BC):
            b_column = tl.sum(tl.where(o_c[:, None, :] == k, b_half, 0.0), axis=2)
            b_x = tl.load(p_inverses + b_offset + o_c * b_c + k, mask=m_c & (k < b_c), other=0.0)
            b_dw -= b_column[:, :, None] * b_x[:, None, :]
    if p_d_log_dets is not None:
        b_d = tl.load(p_d_log_dets + o_n.to(tl.int64) * s_d_log_det, mask=m_n, other=0.0)[:, None, None]
        o_transposed = b_offset[:, :, None] + o_c[:, None, :] * b_c[:, :, None] + o_c[:, :, None]
        b_dw += b_d * tl.load(p_inverses + o_transposed, mask=m_tile, other=0.0)
    o_element = b_offset[:, :, None] + o_c[:, :, None] * b_c[:, :, None] + o_c[:, None, :]
    tl.store(p_dw + o_element, b_dw.to(p_dw.dtype.element_ty), mask=m_tile)


def _sizes(weights: Sequence[Tensor]) -> list[int]:
    return [len(weight) ** 2 for weight in weights]


def _layout(weights: Sequence[Tensor]) -> Tensor:
    """[n, 4] int64: c, row stride, column stride, and the offset of the inverse among all inverses."""
    offsets = [0, *accumulate(_sizes(weights))]
    rows = ((len(w), w.stride(0), w.stride(1), offset) for w, offset in zip(weights, offsets, strict=False))
    return integer_table(tuple(rows), weights[0].device)


def _grid_and_config(weights: Sequence[Tensor]) -> tuple[tuple[int], Config]:
    size = max(SMALLEST_SIZE, triton.next_power_of_2(max(len(weight) for weight in weights)))
    matrices = min(triton.next_power_of_2(len(weights)), ELEMENTS // size**2)
    warps = max(1, matrices * size**2 // ELEMENTS_PER_WARP)
    return (triton.cdiv(len(weights), matrices),), {"BN": matrices, "BC": size, "num_warps": warps, "num_stages": 1}


def _forward(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(all inverses one after the other, flat; log_dets [n]), float32."""
    device = weights[0].device
    inverses = torch.empty(sum(_sizes(weights)), dtype=torch.float32, device=device)
    log_dets = torch.empty(len(weights), dtype=torch.float32, device=device)
    grid, config = _grid_and_config(weights)
    launch(
        OP, invertible_conv1x1_factors_fwd_kernel, grid, pointer_table(weights), _layout(weights), weights[0],
        inverses, log_dets, len(weights), device=device, enable_fp_fusion=False, **config,
    )  # fmt: skip
    return inverses, log_dets


def _backward(
    weights: Sequence[Tensor], inverses: Tensor, d_inverses: Tensor | None, d_log_dets: Tensor | None
) -> Tensor:
    """Gradients of all weights, flat, in their dtype, from the gradients of the results, flat or absent."""
    dw = torch.empty(inverses.shape, dtype=weights[0].dtype, device=inverses.device)
    grid, config = _grid_and_config(weights)
    launch(
        OP, invertible_conv1x1_factors_bwd_kernel, grid, _layout(weights), inverses, d_inverses, d_log_dets, dw,
        0 if d_log_dets is None else d_log_dets.stride(0), len(weights), device=inverses.device, **config,
    )  # fmt: skip
    return dw


def _empty(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(weights[0].dtype, torch.float32)
    return weights[0].new_empty(sum(_sizes(weights)), dtype=wide), weights[0].new_empty(len(weights), dtype=wide)


def _reference(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    inverses, log_dets = reference.invertible_conv1x1_factors(weights)
    return torch.cat([inverse.flatten() for inverse in inverses]), log_dets


def _empty_gradients(weights: Sequence[Tensor], inverses: Tensor, *_: Any) -> Tensor:
    return inverses.new_empty(inverses.shape, dtype=weights[0].dtype)


def _reference_backward(weights: Sequence[Tensor], inverses: Tensor, *upstream: Tensor | None) -> Tensor:
    needs = [True] * len(weights)
    gradients = reference_gradients(lambda *weights: _reference(weights), weights, needs, upstream)
    return torch.cat([gradient.flatten() for gradient in gradients])


factors = operator(
    "invertible_conv1x1_factors",
    "(Tensor[] weights) -> (Tensor, Tensor)",
    kernel=_forward,
    empty=_empty,
    reference=_reference,
)
"""(all inverses one after the other, flat; log|det W|, [n])."""

_gradients = operator(
    "invertible_conv1x1_factors_backward",
    "(Tensor[] weights, Tensor inverses, Tensor? d_inverses, Tensor? d_log_dets) -> Tensor",
    kernel=_backward,
    empty=_empty_gradients,
    reference=_reference_backward,
)


def split_inverses(flat: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """The inverses of `factors`, [c, c] each."""
    return [x.view(len(w), len(w)) for x, w in zip(flat.split(_sizes(weights)), weights, strict=True)]


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[0], *inputs[0])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, d_inverses: Tensor | None, d_log_dets: Tensor | None) -> list[Tensor | None]:
    inverses, *weights = ctx.saved_tensors
    if d_inverses is None and d_log_dets is None:
        return [None] * len(weights)
    d_inverses = None if d_inverses is None else d_inverses.contiguous()
    dws = _gradients(weights, inverses, d_inverses, d_log_dets).split(_sizes(weights))
    gradients = zip(dws, weights, ctx.needs_input_grad[0], strict=True)
    return [dw.view(weight.shape) if needed else None for dw, weight, needed in gradients]


differentiable(factors, _save, _differentiate, _gradients)
