"""The backward of one attention step of one batch item, as device functions that any kernel can call.

`attend_bwd` is the whole step, by one program; `fold_windows` is a part of it, for one block of positions.

Maths, layout and cost: kernels/README.md.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .attend import attend_hidden, load_location, load_v, load_windows


class AttentionUpstream(NamedTuple):
    """Pointers to the gradients that reach one item's outputs, in any float dtypes."""

    context: Any  # [D]
    weights: Any  # [T], or None: every gradient of the weights except through this step's context


class AttentionGradients(NamedTuple):
    """Pointers to what `attend_bwd` writes for one item, contiguous."""

    processed_memory: Any  # [T, A], any float dtype
    location: Any  # [A, strides.location] float32
    v: Any  # [A] float32
    v_bias: Any  # [1] float32, used if there is a bias
    previous: Any  # [T], any float dtype; may be the upstream gradient of the weights. None: not wanted
    cumulative: Any  # [T], any float dtype: through this step's windows only; used if `previous` is wanted


class AttentionScratch(NamedTuple):
    """Pointers to memory that one program uses alone."""

    d_weights: Any  # [T] float32
    windows: Any  # [T, strides.location] float32, used if the gradient of `previous` is wanted


@triton.jit
def _weights_gradient(item, p_weights, upstream, p_g, length, D, strides, blocks):
    """Writes g_t = memory_t . dc + dw_t and returns sum_t w_t g_t."""
    BR: tl.constexpr = blocks.BR
    BD: tl.constexpr = blocks.BD
    o_r, o_d = tl.arange(0, BR), tl.arange(0, BD)
    b_total = tl.zeros((BR,), tl.float32)
    for t0 in range(0, length, BR):
        m_t = t0 + o_r < length
        p_block = item.memory + tl.cast(t0, tl.int64) * strides.memory_t
        b_products = tl.zeros((BR, BD), tl.float32)
        for d0 in range(0, D, BD):
            m_d = d0 + o_d < D
            b_dc = tl.load(upstream.context + d0 + o_d, mask=m_d, other=0.0).to(tl.float32)
            p_tile = p_block + ((o_r * strides.memory_t)[:, None] + ((d0 + o_d) * strides.memory_d)[None, :])
            b_m = tl.load(p_tile, mask=m_t[:, None] & m_d[None, :], other=0.0)
            b_products += b_m.to(tl.float32) * b_dc[None, :]
        b_g = tl.sum(b_products, axis=1)
        if upstream.weights is not None:
            b_g += tl.load(upstream.weights + t0 + o_r, mask=m_t, other=0.0).to(tl.float32)
        b_total += b_g * tl.load(p_weights + t0 + o_r, mask=m_t, other=0.0)
        tl.store(p_g + t0 + o_r, b_g, mask=m_t)
    return tl.sum(b_total, axis=0)


@triton.jit
def _location_gradient(p_dz, item, p_dlocation, length, sizes, s_l, blocks, BN: tl.constexpr):
    """dU = sum_t dz_t f_t^T, BN attention dimensions at a time.

    With BK >= 2 TAPS and BN = BA the sums stay in registers, else they are added up in memory tile by tile.
    """
    dtype: tl.constexpr = item.location.dtype.element_ty
    TAPS: tl.constexpr = blocks.TAPS
    BT: tl.constexpr = blocks.BT
    BK: tl.constexpr = blocks.BK
    ONE_BLOCK: tl.constexpr = (2 * TAPS <= BK) and (BN == blocks.BA)
    A = sizes.A
    o_r, o_k, o_n = tl.arange(0, BT), tl.arange(0, BK), tl.arange(0, BN)
    o_dz = (o_r * A)[:, None] + o_n[None, :]
    b_dlocation = tl.zeros((BK, BN), tl.float32)
    # An item without positions stores zeros.
    for t0 in range(0, tl.maximum(length, 1), BT):
        m_t = t0 + o_r < length
        p_block = p_dz + tl.cast(t0, tl.int64) * A
        for k0 in range(0, 2 * TAPS, BK):
            b_f = load_windows(item, t0, k0, sizes.T, dtype, blocks)
            for a0 in range(0, A, BN):
                m_a = o_n < A - a0
                b_dz = tl.load(p_block + a0 + o_dz, mask=m_t[:, None] & m_a[None, :], other=0.0).to(dtype)  # [BT, BN]
                if ONE_BLOCK:
                    b_dlocation = tl.dot(tl.trans(b_f), b_dz, b_dlocation, input_precision=blocks.PRECISION)
                else:
                    b_part = tl.dot(tl.trans(b_f), b_dz, input_precision=blocks.PRECISION)  # [BK, BN]
                    p_part = p_dlocation + a0 * s_l + k0 + ((o_n * s_l)[None, :] + o_k[:, None])
                    # The first tile overwrites. (The cast is for Triton 3.3's interpreter.)
                    b_part += tl.load(p_part, mask=m_a[None, :] & (tl.cast(t0, tl.int32) > 0), other=0.0)
                    tl.store(p_part, b_part, mask=m_a[None, :])
        if not ONE_BLOCK:
            tl.debug_barrier()
    if ONE_BLOCK:
        tl.store(p_dlocation + ((o_n * s_l)[None, :] + o_k[:, None]), b_dlocation, mask=(o_n < A)[None, :])


@triton.jit
def _windows_gradient(p_dz, item, p_windows, length, A, s_l, blocks, BN: tl.constexpr):
    """df_t = U^T dz_t, rows s_l apart, float32."""
    dtype: tl.constexpr = item.location.dtype.element_ty
    BT: tl.constexpr = blocks.BT
    BK: tl.constexpr = blocks.BK
    o_r, o_k, o_n = tl.arange(0, BT), tl.arange(0, BK), tl.arange(0, BN)
    o_dz = (o_r * A)[:, None] + o_n[None, :]
    for t0 in range(0, length, BT):
        m_t = t0 + o_r < length
        p_block = p_dz + tl.cast(t0, tl.int64) * A
        for k0 in range(0, 2 * blocks.TAPS, BK):
            b_df = tl.zeros((BT, BK), tl.float32)
            for a0 in range(0, A, BN):
                m_dz = m_t[:, None] & (o_n < A - a0)[None, :]
                b_dz = tl.load(p_block + a0 + o_dz, mask=m_dz, other=0.0).to(dtype)  # [BT, BN]
                b_u = load_location(item.location + a0 * s_l, k0, A - a0, s_l, BN, BK)
                b_df = tl.dot(b_dz, b_u, b_df, input_precision=blocks.PRECISION)
            p_tile = p_windows + k0 + tl.cast(t0, tl.int64) * s_l + ((o_r * s_l)[:, None] + o_k[None, :])
            tl.store(p_tile, b_df, mask=m_t[:, None])


@triton.jit
def fold_windows(p_windows, t0, length, s_l, blocks):
    """The gradients of the previous and the cumulative weights at positions t0 ..., both [BT] float32: each is the sum
    of the gradients of the window elements that hold the weight."""
    TAPS: tl.constexpr = blocks.TAPS
    o_r, o_k = tl.arange(0, blocks.BT), tl.arange(0, blocks.BK)
    b_previous = tl.zeros((blocks.BT,), tl.float32)
    b_cumulative = tl.zeros((blocks.BT,), tl.float32)
    for k0 in range(0, 2 * TAPS, blocks.BK):
        o_column = k0 + o_k
        is_cumulative = o_column >= TAPS
        o_tap = o_column - tl.where(is_cumulative, TAPS, 0)
        o_shift = -o_tap + TAPS // 2  # from the element's position to the window's
        o_row = (t0 + o_r)[:, None] + o_shift[None, :]
        m = (o_row >= 0) & (o_row < length) & (o_column < 2 * TAPS)[None, :]
        o_tile = (o_r[:, None] + o_shift[None, :]) * s_l + o_column[None, :]
        b_d = tl.load(p_windows + tl.cast(t0, tl.int64) * s_l + o_tile, mask=m, other=0.0)
        b_dcumulative = tl.where(is_cumulative[None, :], b_d, 0.0)
        b_cumulative += tl.sum(b_dcumulative, axis=1)
        b_previous += tl.sum(b_d - b_dcumulative, axis=1)
    return b_previous, b_cumulative


@triton.jit
def attend_bwd(b_query, item, p_weights, upstream, gradients, scratch, length, sizes, strides, blocks):
    """The backward of a step for one item and one step, by one program; returns dq, [BA] float32.

    The caller computes the gradient of the memory, weights x d_context. Barriers as for `attend_weights`. There are no
    float atomics: the result has the same bits every time.

    Args:
        b_query, item, length, sizes, strides, blocks: as of the forward step. A mask needs no argument: masked
            positions have weight 0.
        p_weights: the forward step's weights, [T] float32.
        upstream: AttentionUpstream.
        gradients: AttentionGradients.
        scratch: AttentionScratch.
    """
    BT: tl.constexpr = blocks.BT
    BA: tl.constexpr = blocks.BA
    # Without tensor cores a thread holds whole rows and columns of its operands in registers.
    MAX_BN: tl.constexpr = 32 if item.location.dtype.element_ty == tl.float32 else 128
    BN: tl.constexpr = BA if BA < MAX_BN else MAX_BN
    T, A, s_l = sizes.T, sizes.A, strides.location
    o_r, o_a = tl.arange(0, BT), tl.arange(0, BA)
    m_a = o_a < A
    b_total = _weights_gradient(item, p_weights, upstream, scratch.d_weights, length, sizes.D, strides, blocks)
    tl.debug_barrier()
    b_dquery = tl.zeros((BA,), tl.float32)
    b_dv = tl.zeros((BA,), tl.float32)
    b_dbias = tl.zeros((BT,), tl.float32)
    for t0 in range(0, T, BT):
        m_t = t0 + o_r < length
        b_h = attend_hidden(b_query, item, t0, length, sizes, strides, blocks)
        b_v, b_bias = load_v(item, A, BA)  # loaded again in each iteration, which saves registers
        b_w = tl.load(p_weights + t0 + o_r, mask=m_t, other=0.0)
        b_g = tl.load(scratch.d_weights + t0 + o_r, mask=m_t, other=0.0)
        b_de = sizes.sharpening * b_w * (b_g - b_total)  # [BT]
        if blocks.NORMALIZATION == "sigmoid":
            b_e = sizes.sharpening * (tl.sum(b_h * b_v[None, :], axis=1) + b_bias)
            b_de *= tl.sigmoid(-b_e)
        b_dv += tl.sum(b_de[:, None] * b_h, axis=0)
        b_dbias += b_de
        b_dz = b_de[:, None] * b_v[None, :] * (1.0 - b_h * b_h)  # [BT, BA]
        b_dquery += tl.sum(b_dz, axis=0)
        o_block = tl.cast(t0, tl.int64) * A
        o_tile = (o_r * A)[:, None] + o_a[None, :]
        m_tile = (t0 + o_r < T)[:, None] & m_a[None, :]
        tl.store(gradients.processed_memory + o_block + o_tile, b_dz, mask=m_tile)
    tl.store(gradients.v + o_a, b_dv, mask=m_a)
    if item.v_bias is not None:
        tl.store(gradients.v_bias, tl.sum(b_dbias, axis=0))
    tl.debug_barrier()
    # dz is read back from memory: as the result of another product it would put all warps along the rows.
    p_dz = gradients.processed_memory
    _location_gradient(p_dz, item, gradients.location, length, sizes, s_l, blocks, BN)
    if gradients.previous is not None:
        _windows_gradient(p_dz, item, scratch.windows, length, A, s_l, blocks, BN)
        tl.debug_barrier()
        for t0 in range(0, T, BT):
            b_previous, b_cumulative = fold_windows(scratch.windows, t0, length, s_l, blocks)
            m_t = t0 + o_r < T
            tl.store(gradients.previous + t0 + o_r, b_previous, mask=m_t)
            tl.store(gradients.cumulative + t0 + o_r, b_cumulative, mask=m_t)
    return b_dquery
