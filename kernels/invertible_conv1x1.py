r"""Invertible 1x1 convolution of c <= 16 channels: the product with W or W^-1, and log|det W| and W^-1 themselves.

Product: out = W z at every position of [B, c, T]. A program has a tile of BT positions, a thread of it whole columns of
c numbers, so that each z_j is loaded once and used for all c outputs. Backward, one pass over d = dout and z:

    dz = W^T d        dW = sum over B and T of d z^T

Each program writes its share of dW, [c, c] float32, into a scratch buffer, which is then summed. The product with W^-1
is the same with another matrix.

Factors: one launch for all flows, whatever their c; a program has several matrices in registers, padded with the
identity to a power of 2, and inverts them by Gauss-Jordan elimination with partial pivoting:

    log|det W| = sum log|pivot|        dW = W^-T dlogdet - W^-T dInverse W^-T

The elimination is done in pairs of float32, a number and its rounding error (Dekker 1971, "A floating-point technique
for extending the available precision"): 48 bits, so that both results are as exact as float32 can hold them, where
plain float32 loses as many digits as W's condition number has. At this size it costs nothing.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastglow.errors import FastglowError

from . import backend
from .graphs import integer_table, pointer_table
from .launch import Config, launch, pick_config
from .reference import invertible_conv1x1 as reference

OP = "invertible_conv1x1"
MAX_CHANNELS = 16  # a column is held by one thread: more do not fit its registers

# Up to so many channels, from few positions to many. A thread has 2 to 8 of them: as many as its registers hold.
FWD_CONFIGS: dict[int, tuple[Config, ...]] = {
    8: (
        {"BT": 256, "num_warps": 2, "num_stages": 1},
        {"BT": 512, "num_warps": 2, "num_stages": 1},
        {"BT": 1024, "num_warps": 4, "num_stages": 1},
    ),
    16: ({"BT": 256, "num_warps": 2, "num_stages": 1}, {"BT": 512, "num_warps": 4, "num_stages": 1}),
}
BWD_CONFIGS: dict[int, tuple[Config, ...]] = {
    8: (
        {"BT": 128, "num_warps": 1, "num_stages": 1},
        {"BT": 256, "num_warps": 2, "num_stages": 1},
        {"BT": 512, "num_warps": 4, "num_stages": 1},
    ),
    16: ({"BT": 128, "num_warps": 2, "num_stages": 1}, {"BT": 256, "num_warps": 4, "num_stages": 1}),
}
MANY_POSITIONS = 1 << 18  # enough for the largest tiles to fill a large GPU
FACTORS_ELEMENTS = 512  # of all matrices of a program
FACTORS_ELEMENTS_A_WARP = 64
SMALLEST_FACTORS = 4  # of a single 2x2 matrix the compiler unrolls all there is, and spills (sm_100, Triton 3.7.1)
SMALLEST_NORMAL = tl.constexpr(2.0**-126)  # its reciprocal is still finite; log takes what is smaller for 0


@triton.jit
def invertible_conv1x1_fwd_kernel(
    p_z, p_w, p_out, T,
    s_zb, s_zc, s_zt, s_wi, s_wj, s_ob, s_oc, s_ot,
    C: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    n_tiles = tl.cdiv(T, BT)
    i_b = (tl.program_id(0) // n_tiles).to(tl.int64)
    i_t = (tl.program_id(0) % n_tiles).to(tl.int64)
    o_t = i_t * BT + tl.arange(0, BT)[None, :]  # [1, BT]
    o_i = tl.arange(0, BC)[:, None].to(tl.int64)  # [BC, 1]
    m_t, m_i = o_t < T, o_i < C
    element = p_out.dtype.element_ty  # what autocast rounds the factors to
    p_row = p_z + i_b * s_zb + o_t * s_zt
    p_column = p_w + o_i * s_wi
    b_out = tl.zeros((BC, BT), tl.float32)
    for _ in tl.static_range(C):
        b_z = tl.load(p_row, mask=m_t, other=0.0).to(element).to(tl.float32)  # [1, BT]
        b_w = tl.load(p_column, mask=m_i, other=0.0).to(element).to(tl.float32)  # [BC, 1]
        b_out += b_w * b_z
        p_row += s_zc
        p_column += s_wj
    tl.store(p_out + i_b * s_ob + o_i * s_oc + o_t * s_ot, b_out.to(element), mask=m_i & m_t)


@triton.jit
def _product(a, b):
    """a b as a rounded number and its error, both exact: halves of 12 bits have exact products."""
    p = a * b
    a_hi = (a.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)
    b_hi = (b.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)
    a_lo, b_lo = a - a_hi, b - b_hi
    return p, ((a_hi * b_hi - p) + a_hi * b_lo + a_lo * b_hi) + a_lo * b_lo


@triton.jit
def _sum(a, a_lo, b, b_lo):
    s = a + b
    t = s - a
    error = (a - (s - t)) + (b - t) + (a_lo + b_lo)
    hi = s + error
    return hi, error - (hi - s)


@triton.jit
def _quotient(a, a_lo, b, b_lo):
    q = a / b
    p, error = _product(q, b)
    q_lo = (((a - p) - error) + a_lo - q * b_lo) / b
    hi = q + q_lo
    return hi, q_lo - (hi - q)


@triton.jit
def invertible_conv1x1_factors_fwd_kernel(
    p_pointers, p_layout, p_typed, p_inverses, p_log_dets, n, BN: tl.constexpr, BC: tl.constexpr
):
    """`p_layout`: c, both strides and the inverse's offset, int64; `p_typed`: any weight, all are of its dtype.

    Gauss-Jordan in place, without swapping rows: the row of the k-th pivot is that of W^-1's row k, and column k
    becomes W^-1's column of that row's number. To be compiled without contraction of products and sums.
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
    b_step = tl.full((BN, BC), -1, tl.int32)  # of each row, the column that it was the pivot of
    b_source = tl.zeros((BN, BC), tl.int32)  # of each column, the row of its pivot
    b_log_det = tl.zeros((BN,), tl.float32)
    for k in range(BC):
        b_column = tl.sum(tl.where(o_j == k, b_x, 0.0), axis=2)  # [BN, BC]
        b_column_lo = tl.sum(tl.where(o_j == k, b_x_lo, 0.0), axis=2)
        # NaN is chosen before any number, so that the determinant shows it.
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
        # The column is divided, not the row: on rows that are yet to be pivots that cannot overflow.
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
def invertible_conv1x1_bwd_kernel(
    p_d, p_z, p_w, p_dz, p_dw, T,
    s_db, s_dc, s_dt, s_zb, s_zc, s_zt, s_wi, s_wj, s_gb, s_gc, s_gt,
    C: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr, HAS_DZ: tl.constexpr, HAS_DW: tl.constexpr,
):  # fmt: skip
    """`p_dw`: [programs, C, C] float32, each program's share; the s_g* are dz's strides."""
    n_tiles = tl.cdiv(T, BT)
    i_b = (tl.program_id(0) // n_tiles).to(tl.int64)
    i_t = (tl.program_id(0) % n_tiles).to(tl.int64)
    o_t = i_t * BT + tl.arange(0, BT)[None, :]  # [1, BT]
    o_j = tl.arange(0, BC).to(tl.int64)
    m_t, m_j = o_t < T, o_j < C
    m_tile = m_j[:, None] & m_t
    element = p_d.dtype.element_ty
    p_row = p_d + i_b * s_db + o_t * s_dt
    if HAS_DW:
        p_tile = p_z + i_b * s_zb + o_j[:, None] * s_zc + o_t * s_zt
        b_z = tl.load(p_tile, mask=m_tile, other=0.0).to(element).to(tl.float32)  # [BC, BT]
        p_share = p_dw + tl.program_id(0).to(tl.int64) * (C * C) + o_j
    if HAS_DZ:
        b_dz = tl.zeros((BC, BT), tl.float32)
        p_w_row = p_w + o_j * s_wj
    for _ in tl.static_range(C):
        b_d = tl.load(p_row, mask=m_t, other=0.0).to(tl.float32)  # [1, BT]
        p_row += s_dc
        if HAS_DW:
            tl.store(p_share, tl.sum(b_d * b_z, axis=1), mask=m_j)
            p_share += C
        if HAS_DZ:
            b_w = tl.load(p_w_row, mask=m_j, other=0.0).to(element).to(tl.float32)  # [BC]
            b_dz += b_w[:, None] * b_d
            p_w_row += s_wi
    if HAS_DZ:
        p_tile = p_dz + i_b * s_gb + o_j[:, None] * s_gc + o_t * s_gt
        tl.store(p_tile, b_dz.to(p_dz.dtype.element_ty), mask=m_tile)


@triton.jit
def invertible_conv1x1_factors_bwd_kernel(
    p_layout, p_inverses, p_d_inverses, p_d_log_dets, p_dw, s_d_log_det, n,
    BN: tl.constexpr, BC: tl.constexpr, HAS_D_INVERSES: tl.constexpr, HAS_D_LOG_DETS: tl.constexpr,
):  # fmt: skip
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
    m_n = o_n < n
    b_c = tl.load(p_layout + 4 * o_n, mask=m_n, other=0)[:, None]  # [BN, 1]
    b_offset = tl.load(p_layout + 4 * o_n + 3, mask=m_n, other=0)[:, None]
    o_c = tl.arange(0, BC)[None, :]  # [1, BC]
    m_c = o_c < b_c  # [BN, BC]
    m_tile = m_c[:, :, None] & m_c[:, None, :]
    b_dw = tl.zeros((BN, BC, BC), tl.float32)
    if HAS_D_INVERSES:
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
    if HAS_D_LOG_DETS:
        b_d = tl.load(p_d_log_dets + o_n * s_d_log_det, mask=m_n, other=0.0)[:, None, None]
        o_transposed = b_offset[:, :, None] + o_c[:, None, :] * b_c[:, :, None] + o_c[:, :, None]
        b_dw += b_d * tl.load(p_inverses + o_transposed, mask=m_tile, other=0.0)
    o_element = b_offset[:, :, None] + o_c[:, :, None] * b_c[:, :, None] + o_c[:, None, :]
    tl.store(p_dw + o_element, b_dw.to(p_dw.dtype.element_ty), mask=m_tile)


def _product_forward(z: Tensor, matrix: Tensor, dtype: torch.dtype) -> Tensor:
    B, c, T = z.shape
    out = torch.empty((B, c, T), dtype=dtype, device=z.device)
    if out.numel():
        config = _config("invertible_conv1x1_fwd", FWD_CONFIGS, z)
        grid = (triton.cdiv(T, config["BT"]) * B,)
        strides = (*z.stride(), *matrix.stride(), *out.stride())
        launch(
            OP, invertible_conv1x1_fwd_kernel, grid, z, matrix, out, T, *strides,
            C=c, BC=triton.next_power_of_2(c), device=z.device, **config,
        )  # fmt: skip
    return out


def _product_backward(
    d: Tensor, z: Tensor | None, matrix: Tensor, dz_dtype: torch.dtype | None
) -> tuple[Tensor | None, Tensor | None]:
    """(dz, dW): dz if it is given a dtype, dW if z is given."""
    B, c, T = d.shape
    config = _config("invertible_conv1x1_bwd", BWD_CONFIGS, d)
    n_programs = triton.cdiv(T, config["BT"]) * B
    dz = None if dz_dtype is None else torch.empty((B, c, T), dtype=dz_dtype, device=d.device)
    shares = None if z is None else torch.empty((n_programs, c, c), dtype=torch.float32, device=d.device)
    if n_programs:
        absent = (0, 0, 0)
        strides = (*d.stride(), *(absent if z is None else z.stride()), *matrix.stride())
        launch(
            OP, invertible_conv1x1_bwd_kernel, (n_programs,), d, z, matrix, dz, shares, T,
            *strides, *(absent if dz is None else dz.stride()),
            C=c, BC=triton.next_power_of_2(c), HAS_DZ=dz is not None, HAS_DW=z is not None, device=d.device, **config,
        )  # fmt: skip
    return dz, None if shares is None else shares.sum(dim=0).to(matrix.dtype)


def _factors_forward(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(all inverses one after the other, flat; log_dets [n]), float32."""
    device = weights[0].device
    inverses = torch.empty(sum(_sizes(weights)), dtype=torch.float32, device=device)
    log_dets = torch.empty(len(weights), dtype=torch.float32, device=device)
    grid, config = _factors_config(weights)
    launch(
        OP, invertible_conv1x1_factors_fwd_kernel, grid, pointer_table(weights), _layout(weights), weights[0],
        inverses, log_dets, len(weights), device=device, enable_fp_fusion=False, **config,
    )  # fmt: skip
    return inverses, log_dets


def _factors_backward(
    weights: Sequence[Tensor], inverses: Tensor, d_inverses: Tensor | None, d_log_dets: Tensor | None
) -> Tensor:
    """Gradients of all weights, flat, in their dtype; those of the results are flat or absent."""
    dw = torch.empty(inverses.shape, dtype=weights[0].dtype, device=inverses.device)
    grid, config = _factors_config(weights)
    launch(
        OP, invertible_conv1x1_factors_bwd_kernel, grid, _layout(weights), inverses, d_inverses, d_log_dets, dw,
        0 if d_log_dets is None else d_log_dets.stride(0), len(weights),
        HAS_D_INVERSES=d_inverses is not None, HAS_D_LOG_DETS=d_log_dets is not None,
        device=inverses.device, **config,
    )  # fmt: skip
    return dw


def _config(kernel: str, configs: dict[int, tuple[Config, ...]], z: Tensor) -> Config:
    B, c, T = z.shape
    candidates = next(candidates for channels, candidates in configs.items() if c <= channels)

    def heuristic(dtype: torch.dtype, channels: int, positions: int) -> Config:
        return candidates[-1 if positions >= MANY_POSITIONS else 0]

    return pick_config(kernel, candidates, heuristic, z, channels=c, positions=B * T)


def _sizes(weights: Sequence[Tensor]) -> list[int]:
    return [len(weight) ** 2 for weight in weights]


def _factors_config(weights: Sequence[Tensor]) -> tuple[tuple[int], Config]:
    """The grid and the configuration of the factors' kernels."""
    channels = max(SMALLEST_FACTORS, triton.next_power_of_2(max(len(weight) for weight in weights)))
    matrices = min(triton.next_power_of_2(len(weights)), FACTORS_ELEMENTS // channels**2)
    warps = max(1, matrices * channels**2 // FACTORS_ELEMENTS_A_WARP)
    return (triton.cdiv(len(weights), matrices),), {
        "BN": matrices,
        "BC": channels,
        "num_warps": warps,
        "num_stages": 1,
    }


def _layout(weights: Sequence[Tensor]) -> Tensor:
    """[n, 4] int64: c, both strides, and where the flat inverses have the matrix."""
    offsets = [0, *accumulate(_sizes(weights))]
    rows = ((len(w), w.stride(0), w.stride(1), offset) for w, offset in zip(weights, offsets, strict=False))
    return integer_table(tuple(rows), weights[0].device)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, matrix, dtype):
        needs_dz, needs_dw, _ = ctx.needs_input_grad
        ctx.save_for_backward(z if needs_dw else None, matrix)
        ctx.dz_dtype = z.dtype if needs_dz else None
        return _product_forward(z, matrix, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, d):
        return *_product_backward(d, *ctx.saved_tensors, ctx.dz_dtype), None


class _Factors(torch.autograd.Function):
    """(log_dets, *inverses) of the weights."""

    @staticmethod
    def forward(ctx, *weights):
        inverses, log_dets = _factors_forward(weights)
        ctx.save_for_backward(inverses, *weights)
        ctx.set_materialize_grads(False)
        matrices = inverses.split(_sizes(weights))
        return log_dets, *(x.view(len(w), len(w)) for x, w in zip(matrices, weights, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx, d_log_dets, *d_inverses):
        inverses, *weights = ctx.saved_tensors
        d_flat = None
        if any(d is not None for d in d_inverses):
            sizes = _sizes(weights)
            parts = zip(d_inverses, sizes, strict=True)
            d_flat = torch.cat([inverses.new_zeros(n) if d is None else d.reshape(-1) for d, n in parts])
        if d_flat is None and d_log_dets is None:
            return (None,) * len(weights)
        dw = _factors_backward(weights, inverses, d_flat, d_log_dets)
        parts = zip(dw.split(_sizes(weights)), weights, ctx.needs_input_grad, strict=True)
        return tuple(x.view(w.shape) if needed else None for x, w, needed in parts)


def invertible_conv1x1_factors(weights: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """W^-1 and log|det W| of several flows, in one launch.

    log|det| is that of the absolute value. A W whose elimination meets pivots of 0 has log|det| = -inf, as
    torch.linalg.slogdet says; its "inverse" is finite and of no use: that of W with those pivots replaced by 1. The
    kernel takes pivots below 2^-126 for 0. Not touched by autocast.

    Args:
        weights: [c, c, 1] each, not necessarily of one c, at least one.

    Returns:
        (inverses, [c, c] each; log|det W| of one group, [len(weights)]), float32 (float64 for float64); both
        differentiable.

    Raises:
        FastglowError: no weights, or one of another shape.

    Source: Kingma & Dhariwal 2018, Glow, section 3.2.
    """
    weights = list(weights)
    if not weights:
        raise FastglowError(f"{OP}_factors: no weights given: pass at least one")
    for weight in weights:
        _check_weight(weight)
    if not backend.picks_triton(OP, *weights, unsupported=_against(*weights)):
        return reference.invertible_conv1x1_factors(weights)
    log_dets, *inverses = _Factors.apply(*weights)
    return inverses, log_dets


def invertible_conv1x1(z: Tensor, weight: Tensor, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """W z and log|det W|.

    Under autocast z and the weight are cast as conv1d's are; log|det W| is that of the weight as it is.

    Args:
        z: [B, c, T]; any strides.
        weight: [c, c, 1], dtype of `z` unless autocast is on.
        log_det: scalar, one entry of `invertible_conv1x1_factors`' log|det W|, if it is known already.

    Returns:
        (W z [B, c, T]; log|det W| of one group: a scalar float32, or float64 for float64, or `log_det` itself).

    Raises:
        FastglowError: shapes or dtypes that do not fit.

    Source: Kingma & Dhariwal 2018, Glow, section 3.2.
    """
    _check(z, weight, log_det=log_det)
    if z.dtype != weight.dtype and backend.autocast_dtype(z) is None:
        raise FastglowError(f"{OP}: z is {z.dtype} and the weight {weight.dtype}: cast one, or use autocast")
    if not backend.picks_triton(OP, z, weight, log_det, unsupported=_against(weight)):
        return reference.invertible_conv1x1(z, weight, log_det)
    if log_det is None:
        log_det = invertible_conv1x1_factors([weight])[1][0]
    return _Product.apply(z, weight.squeeze(2), backend.autocast_dtype(z) or z.dtype), log_det


def invertible_conv1x1_inverse(z: Tensor, weight: Tensor, inverse: Tensor | None = None) -> Tensor:
    """W^-1 z, the inverse taken in float32 (float64 for float64) and cast as conv1d's weight would be.

    Args:
        z: [B, c, T]; any strides.
        weight: [c, c, 1], the weight of the forward direction.
        inverse: [c, c], one of `invertible_conv1x1_factors`' inverses, if it is known already; `weight` is
            then not read.

    Returns:
        [B, c, T], dtype of `z`, or autocast's.

    Raises:
        FastglowError: shapes or dtypes that do not fit.

    Source: Kingma & Dhariwal 2018, Glow, section 3.2.
    """
    _check(z, weight, inverse=inverse)
    if not backend.picks_triton(OP, z, weight, inverse, unsupported=_against(weight)):
        return reference.invertible_conv1x1_inverse(z, weight, inverse)
    if inverse is None:
        (inverse,), _ = invertible_conv1x1_factors([weight])
    return _Product.apply(z, inverse, backend.autocast_dtype(z) or z.dtype)


def _check(z: Tensor, weight: Tensor, log_det: Tensor | None = None, inverse: Tensor | None = None) -> None:
    _check_weight(weight)
    c = len(weight)
    if z.dim() != 3 or z.shape[1] != c:
        raise FastglowError(f"{OP}: z has shape {tuple(z.shape)}: a weight of {c} channels takes [B, {c}, T]")
    if log_det is not None and log_det.dim():
        raise FastglowError(f"{OP}: log_det has shape {tuple(log_det.shape)}: pass one entry, a scalar")
    if inverse is not None and inverse.shape != (c, c):
        raise FastglowError(f"{OP}: inverse has shape {tuple(inverse.shape)}: this weight's is ({c}, {c})")


def _check_weight(weight: Tensor) -> None:
    if weight.dim() != 3 or weight.shape != (len(weight), len(weight), 1) or not len(weight):
        raise FastglowError(f"{OP}: weight has shape {tuple(weight.shape)}: it must be [c, c, 1]")


def _against(*weights: Tensor) -> str | None:
    channels = max(len(weight) for weight in weights)
    if channels > MAX_CHANNELS:
        return f"{channels} channels are more than {MAX_CHANNELS}"
    return None if len({weight.dtype for weight in weights}) == 1 else "its weights are not of one dtype"
