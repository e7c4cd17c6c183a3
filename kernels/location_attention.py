r"""Location-sensitive attention, a step at a time, forward and backward.

With q = W_q query, f_t the window of 2k numbers of the previous and the cumulative weights around position t, U = W_d
W_c the location convolution and dense layer as one matrix [A, 2k], s the sharpening factor:

    e_t = s (v . tanh(q + m_t + U f_t) + b)        h_t = tanh(...), [A]
    w   = softmax(e), or sigmoid(e) / sum sigmoid(e)
    c   = sum_t w_t memory_t

Backward, from dc and dw:

    g_t  = memory_t . dc + dw_t          G = sum_t w_t g_t
    de_t = s w_t (g_t - G)               of sigmoid normalisation (1 - sigmoid(e_t)) times that
    dz_t = de_t v (1 - h_t^2)            [A]; dq = sum dz_t, dm_t = dz_t, dv = sum de_t h_t
    dU   = sum_t dz_t f_t^T              df_t = U^T dz_t, added up where the windows lie

One program does one item: `attend` and `attend_bwd` are the whole step of an item, for any kernel that has an item's
processed query in registers. Tiles are [BT, BA] of positions and all of A, [BT, BK] of positions and numbers of a
window, [BR, BD] of positions and columns of the memory. What the backward pass needs of h_t it computes anew.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fastglow.errors import FastglowError

from . import backend
from .arguments import SMALLEST_DOT
from .launch import Config, launch, pick_config, product_precision
from .reference.location_attention import NORMALIZATIONS
from .reference.location_attention import location_attention as reference_location_attention

OP = "location_attention"
WINDOW = 64  # the columns of U are padded to a multiple of it
# A tile has all attention channels: beyond, by the size of a number, the registers do not hold it.
MOST_ATTENTION = {2: 512, 4: 256}
WIDE_ATTENTION = 128


def _config(bt: int, bk: int, br: int, bd: int, num_warps: int) -> Config:
    return {"BT": bt, "BK": bk, "BR": br, "BD": bd, "num_warps": num_warps, "num_stages": 2}


# By the size of an element and whether there are more than 128 attention channels. Forward, a program makes BD columns
# of the context and for that all weights of its item, so the narrow ones are for few items.
FORWARD_CONFIGS = {
    (2, False): (_config(64, 64, 16, 512, 8), _config(64, 64, 32, 128, 8), _config(64, 64, 32, 64, 8)),
    (2, True): (_config(16, 64, 16, 512, 8), _config(16, 64, 64, 64, 8)),
    (4, False): (_config(32, 16, 16, 512, 8), _config(32, 16, 32, 64, 8)),
    (4, True): (_config(16, 16, 16, 512, 8), _config(16, 16, 32, 128, 8)),
}
BACKWARD_CONFIGS = {
    (2, False): (_config(64, 64, 16, 256, 8),),
    (2, True): (_config(16, 16, 16, 256, 8),),
    (4, False): (_config(16, 16, 16, 256, 8),),
    (4, True): (_config(16, 16, 16, 256, 16),),
}


# Offsets inside a tile are 32 bits wide; what can pass 2^31, the way to a tile's first row, is a scalar of 64 bits.


@triton.jit
def _windows(
    p_previous, p_cumulative, t0, k0, T, dtype: tl.constexpr, TAPS: tl.constexpr, BT: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """Numbers k0 ... of the windows of positions t0 ..., [BT, BK]: column channel * TAPS + tap, zeros outside."""
    o_column = k0 + tl.arange(0, BK)
    is_cumulative = o_column >= TAPS
    o_tap = o_column - tl.where(is_cumulative, TAPS, 0)
    o_source = (t0 + tl.arange(0, BT))[:, None] + (o_tap - TAPS // 2)[None, :]
    m = (o_source >= 0) & (o_source < T) & (o_column < 2 * TAPS)[None, :]
    p_rows = tl.where(is_cumulative, p_cumulative, p_previous)  # [BK]
    return tl.load(p_rows[None, :] + o_source, mask=m, other=0.0).to(dtype)


@triton.jit
def _location_weight(p_location, k0, A, s_l, BA: tl.constexpr, BK: tl.constexpr):
    """Columns k0 ... of U, [BA, BK], zeros beyond A."""
    o_a, o_k = tl.arange(0, BA), k0 + tl.arange(0, BK)
    return tl.load(p_location + ((o_a * s_l)[:, None] + o_k[None, :]), mask=(o_a < A)[:, None], other=0.0)


@triton.jit
def attend_hidden(
    b_query, p_processed, p_previous, p_cumulative, p_location, t0, length, T, A, s_pt, s_pa, s_l,
    TAPS: tl.constexpr, BT: tl.constexpr, BA: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """tanh(q + m_t + U f_t) of positions t0 ..., [BT, BA] float32; zeros beyond A."""
    o_r, o_a = tl.arange(0, BT), tl.arange(0, BA)
    m = (t0 + o_r < length)[:, None] & (o_a < A)[None, :]
    p_tile = p_processed + tl.cast(t0, tl.int64) * s_pt + ((o_r * s_pt)[:, None] + (o_a * s_pa)[None, :])
    b_z = tl.load(p_tile, mask=m, other=0.0).to(tl.float32) + b_query[None, :]
    for k0 in range(0, 2 * TAPS, BK):
        b_f = _windows(p_previous, p_cumulative, t0, k0, T, p_location.dtype.element_ty, TAPS, BT, BK)
        b_u = _location_weight(p_location, k0, A, s_l, BA, BK)
        b_z = tl.dot(b_f, tl.trans(b_u), b_z, input_precision=PRECISION)
    # The sigmoid form of tanh overflows nowhere.
    return 2.0 * tl.sigmoid(2.0 * b_z) - 1.0


@triton.jit
def _v_and_bias(p_v, p_v_bias, A, BA: tl.constexpr, HAS_V_BIAS: tl.constexpr):
    """v [BA] and its bias, float32."""
    o_a = tl.arange(0, BA)
    b_v = tl.load(p_v + o_a, mask=o_a < A, other=0.0).to(tl.float32)
    b_bias = 0.0
    if HAS_V_BIAS:
        b_bias = tl.load(p_v_bias).to(tl.float32)
    return b_v, b_bias


@triton.jit
def attend_weights(
    b_query, p_processed, p_previous, p_cumulative, p_location, p_v, p_v_bias, p_mask, p_weights, p_next_cumulative,
    length, T, A, sharpening, s_pt, s_pa, s_l, s_k,
    TAPS: tl.constexpr, NORMALIZATION: tl.constexpr, HAS_V_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_NEXT: tl.constexpr, BT: tl.constexpr, BA: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes the attention weights of one item, and the next cumulative weights; arguments as of `attend`.

    What it writes other threads of the program read only after a tl.debug_barrier.
    """
    o_r = tl.arange(0, BT)
    b_v, b_bias = _v_and_bias(p_v, p_v_bias, A, BA, HAS_V_BIAS)
    # A maximum and a sum for each row of the tiles; reducing them to one within the loop crashes Triton 3.7 on sm_100.
    b_max = tl.full((BT,), float("-inf"), tl.float32)
    b_sum = tl.zeros((BT,), tl.float32)
    # Energies, or their sigmoids, wait in the row of the weights.
    for t0 in range(0, length, BT):
        m_t = t0 + o_r < length
        b_h = attend_hidden(
            b_query, p_processed, p_previous, p_cumulative, p_location, t0, length, T, A, s_pt, s_pa, s_l,
            TAPS, BT, BA, BK, PRECISION,
        )  # fmt: skip
        b_e = sharpening * (tl.sum(b_h * b_v[None, :], axis=1) + b_bias)  # [BT]
        m_in = m_t
        if HAS_MASK:
            m_in = m_in & (tl.load(p_mask + (t0 + o_r).to(tl.int64) * s_k, mask=m_t, other=1) == 0)
        if NORMALIZATION == "softmax":
            b_e = tl.where(m_in, b_e, float("-inf"))
            b_next_max = tl.maximum(b_max, b_e)
            # Nothing may have been found yet that is not masked.
            b_shift = tl.where(b_next_max == float("-inf"), 0.0, b_next_max)
            b_sum = b_sum * tl.exp(b_max - b_shift) + tl.exp(b_e - b_shift)
            b_max = b_next_max
        else:
            b_e = tl.where(m_in, tl.sigmoid(b_e), 0.0)
            b_sum += b_e
        tl.store(p_weights + t0 + o_r, b_e, mask=m_t)
    tl.debug_barrier()
    if NORMALIZATION == "softmax":
        b_shift = tl.max(b_max, axis=0)
        b_shift = tl.where(b_shift == float("-inf"), 0.0, b_shift)
        b_sum *= tl.exp(b_max - b_shift)
    b_total = tl.sum(b_sum, axis=0)
    b_scale = tl.where(b_total == 0.0, 0.0, 1.0 / tl.where(b_total == 0.0, 1.0, b_total))
    for t0 in range(0, T, BT):
        o_t = t0 + o_r
        if NORMALIZATION == "softmax":
            b_w = tl.load(p_weights + o_t, mask=o_t < length, other=float("-inf"))
            b_w = tl.exp(b_w - b_shift) * b_scale
        else:
            b_w = tl.load(p_weights + o_t, mask=o_t < length, other=0.0) * b_scale
        if HAS_NEXT:
            b_sums = tl.load(p_cumulative + o_t, mask=o_t < T, other=0.0).to(tl.float32)
        # With fewer positions than threads, several load one: all are to have it before one writes it.
        tl.debug_barrier()
        tl.store(p_weights + o_t, b_w, mask=o_t < T)
        if HAS_NEXT:
            tl.store(p_next_cumulative + o_t, b_sums + b_w, mask=o_t < T)


@triton.jit
def attend_context(
    p_memory, p_weights, d0, length, D, s_mt, s_md, BR: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """Columns d0 ... of the context, [BD] float32, of weights [T] float32 that are seen by all of the program."""
    o_r, o_d = tl.arange(0, BR), d0 + tl.arange(0, BD)
    b_sums = tl.zeros((BR, BD), tl.float32)
    o_tile = (o_r * s_mt)[:, None] + (o_d * s_md)[None, :]
    for t0 in range(0, length, BR):
        m_t = t0 + o_r < length
        b_w = tl.load(p_weights + t0 + o_r, mask=m_t, other=0.0)
        m = m_t[:, None] & (o_d < D)[None, :]
        b_m = tl.load(p_memory + tl.cast(t0, tl.int64) * s_mt + o_tile, mask=m, other=0.0)
        b_sums += b_w[:, None] * b_m.to(tl.float32)
    return tl.sum(b_sums, axis=0)


@triton.jit
def attend(
    b_query, p_memory, p_processed, p_previous, p_cumulative, p_location, p_v, p_v_bias, p_mask,
    p_weights, p_context, p_next_cumulative,
    length, T, A, D, sharpening, s_mt, s_md, s_pt, s_pa, s_l, s_k,
    TAPS: tl.constexpr, NORMALIZATION: tl.constexpr, HAS_V_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_NEXT: tl.constexpr, BT: tl.constexpr, BA: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr,
    BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One attention step of one item, by one program.

    All pointers are those of the item, whatever the caller added to get there. A row written by other programs, or
    by other threads of this one, must be visible to all threads before the call; what this writes is so only after
    a tl.debug_barrier (or a barrier of the grid) that the caller adds.

    Args:
        b_query: W_q query, [BA] float32, zeros beyond A.
        p_memory: [T, D], strides s_mt, s_md; p_processed: [T, A], strides s_pt, s_pa; any float dtype.
        p_previous, p_cumulative: weights [T], contiguous, any one float dtype. They are read at all T positions:
            beyond the length they should hold zeros.
        p_location: U [A, s_l] as `fold_location` makes it, in the dtype that the product is computed in: column
            channel * TAPS + tap (channel 0 the previous weights), then zeros up to s_l, a multiple of BK.
        p_v: [A]; p_v_bias: one number, read if HAS_V_BIAS; any float dtype.
        p_mask: [T] uint8, stride s_k, read if HAS_MASK: positions where it is not 0 get no weight.
        p_weights: [T] float32: gets the weights, zeros beyond the length and where masked. Not p_previous or
            p_cumulative. An item of which nothing is left has zeros everywhere.
        p_context: [D], any float dtype: gets the context.
        p_next_cumulative: [T], any float dtype; gets cumulative + weights if HAS_NEXT; may be p_cumulative.
        length: positions that count, at most T; 0 is allowed.
        sharpening: float factor of the energies.
        TAPS: k, odd; NORMALIZATION: "softmax" or "sigmoid".
        BT, BA, BK, BR, BD: powers of 2; BT, BA and BK at least 16, BA at least A. 2 TAPS numbers of a window are
            multiplied BK at a time, the context is made BD columns at a time from tiles of [BR, BD].
        PRECISION: input_precision of the product.
    """
    attend_weights(
        b_query, p_processed, p_previous, p_cumulative, p_location, p_v, p_v_bias, p_mask, p_weights,
        p_next_cumulative, length, T, A, sharpening, s_pt, s_pa, s_l, s_k,
        TAPS, NORMALIZATION, HAS_V_BIAS, HAS_MASK, HAS_NEXT, BT, BA, BK, PRECISION,
    )  # fmt: skip
    tl.debug_barrier()
    for d0 in range(0, D, BD):
        b_context = attend_context(p_memory, p_weights, d0, length, D, s_mt, s_md, BR, BD)
        o_d = d0 + tl.arange(0, BD)
        tl.store(p_context + o_d, b_context.to(p_context.dtype.element_ty), mask=o_d < D)


@triton.jit
def _put(p, b_x, m, ADD: tl.constexpr):
    """Stores float32 numbers, or adds them to what is there."""
    if ADD:
        b_x += tl.load(p, mask=m, other=0.0).to(tl.float32)
    tl.store(p, b_x, mask=m)


@triton.jit
def _weights_gradient(
    p_memory, p_dcontext, p_dweights, p_weights, p_g, length, D, s_mt, s_md,
    HAS_DWEIGHTS: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Writes g_t = memory_t . dc + dw_t and returns sum_t w_t g_t."""
    o_r, o_d = tl.arange(0, BR), tl.arange(0, BD)
    b_total = tl.zeros((BR,), tl.float32)
    for t0 in range(0, length, BR):
        m_t = t0 + o_r < length
        p_block = p_memory + tl.cast(t0, tl.int64) * s_mt
        b_products = tl.zeros((BR, BD), tl.float32)
        for d0 in range(0, D, BD):
            m_d = d0 + o_d < D
            b_dc = tl.load(p_dcontext + d0 + o_d, mask=m_d, other=0.0).to(tl.float32)
            p_tile = p_block + ((o_r * s_mt)[:, None] + ((d0 + o_d) * s_md)[None, :])
            b_m = tl.load(p_tile, mask=m_t[:, None] & m_d[None, :], other=0.0)
            b_products += b_m.to(tl.float32) * b_dc[None, :]
        b_g = tl.sum(b_products, axis=1)
        if HAS_DWEIGHTS:
            b_g += tl.load(p_dweights + t0 + o_r, mask=m_t, other=0.0).to(tl.float32)
        b_total += b_g * tl.load(p_weights + t0 + o_r, mask=m_t, other=0.0)
        tl.store(p_g + t0 + o_r, b_g, mask=m_t)
    return tl.sum(b_total, axis=0)


@triton.jit
def _location_products(
    p_dz, p_previous, p_cumulative, p_location, p_dlocation, p_products, length, T, A, s_l,
    TAPS: tl.constexpr, ADD: tl.constexpr, FOLD: tl.constexpr, BT: tl.constexpr, BA: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dU and, if FOLD, the gradients of the windows, both products with dz [T, A].

    dz comes from memory: a product whose operand is another's result has all of its warps along the rows.
    """
    dtype: tl.constexpr = p_location.dtype.element_ty
    # Without tensor cores a thread has whole rows and columns of its operands in registers.
    MOST: tl.constexpr = 32 if p_location.dtype.element_ty == tl.float32 else 128
    BN: tl.constexpr = BA if BA < MOST else MOST
    ONE_BLOCK: tl.constexpr = (2 * TAPS <= BK) and (BN == BA)
    o_r, o_k, o_n = tl.arange(0, BT), tl.arange(0, BK), tl.arange(0, BN)
    o_dz = (o_r * A)[:, None] + o_n[None, :]
    b_dlocation = tl.zeros((BK, BN), tl.float32)
    # Of an item without positions zeros are stored.
    for t0 in range(0, length if ADD else tl.maximum(length, 1), BT):
        m_t = t0 + o_r < length
        p_block = p_dz + tl.cast(t0, tl.int64) * A
        for k0 in range(0, 2 * TAPS, BK):
            b_f = _windows(p_previous, p_cumulative, t0, k0, T, dtype, TAPS, BT, BK)
            for a0 in range(0, A, BN):
                m_a = o_n < A - a0
                b_dz = tl.load(p_block + a0 + o_dz, mask=m_t[:, None] & m_a[None, :], other=0.0).to(dtype)  # [BT, BN]
                if ONE_BLOCK:
                    b_dlocation = tl.dot(tl.trans(b_f), b_dz, b_dlocation, input_precision=PRECISION)
                else:
                    b_part = tl.dot(tl.trans(b_f), b_dz, input_precision=PRECISION)  # [BK, BN]
                    p_part = p_dlocation + a0 * s_l + k0 + ((o_n * s_l)[None, :] + o_k[:, None])
                    # Unless it is added to, nothing is there yet before the first positions.
                    b_part += tl.load(p_part, mask=m_a[None, :] & (ADD or t0 > 0), other=0.0)
                    tl.store(p_part, b_part, mask=m_a[None, :])
        if not ONE_BLOCK:
            tl.debug_barrier()
    if ONE_BLOCK:
        _put(p_dlocation + ((o_n * s_l)[None, :] + o_k[:, None]), b_dlocation, (o_n < A)[None, :], ADD)
    if FOLD:
        for t0 in range(0, length, BT):
            m_t = t0 + o_r < length
            p_block = p_dz + tl.cast(t0, tl.int64) * A
            for k0 in range(0, 2 * TAPS, BK):
                b_df = tl.zeros((BT, BK), tl.float32)
                for a0 in range(0, A, BN):
                    m_dz = m_t[:, None] & (o_n < A - a0)[None, :]
                    b_dz = tl.load(p_block + a0 + o_dz, mask=m_dz, other=0.0).to(dtype)  # [BT, BN]
                    b_u = _location_weight(p_location + a0 * s_l, k0, A - a0, s_l, BN, BK)
                    b_df = tl.dot(b_dz, b_u, b_df, input_precision=PRECISION)
                p_windows = p_products + k0 + tl.cast(t0, tl.int64) * s_l + ((o_r * s_l)[:, None] + o_k[None, :])
                tl.store(p_windows, b_df, mask=m_t[:, None])


@triton.jit
def _fold_windows(
    p_products, p_dprevious, p_dcumulative, length, T, s_l,
    TAPS: tl.constexpr, ADD_CUMULATIVE: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Adds up the gradients of the windows, rows s_l apart, where the windows lie."""
    o_r, o_k = tl.arange(0, BT), tl.arange(0, BK)
    for t0 in range(0, T, BT):
        b_previous = tl.zeros((BT,), tl.float32)
        b_cumulative = tl.zeros((BT,), tl.float32)
        for k0 in range(0, 2 * TAPS, BK):
            o_column = k0 + o_k
            is_cumulative = o_column >= TAPS
            o_tap = o_column - tl.where(is_cumulative, TAPS, 0)
            o_row = (t0 + o_r)[:, None] + (TAPS // 2 - o_tap)[None, :]  # of the window that has this number there
            m = (o_row >= 0) & (o_row < length) & (o_column < 2 * TAPS)[None, :]
            o_tile = (o_r[:, None] + (TAPS // 2 - o_tap)[None, :]) * s_l + o_column[None, :]
            b_d = tl.load(p_products + tl.cast(t0, tl.int64) * s_l + o_tile, mask=m, other=0.0)
            b_of_cumulative = tl.where(is_cumulative[None, :], b_d, 0.0)
            b_cumulative += tl.sum(b_of_cumulative, axis=1)
            b_previous += tl.sum(b_d - b_of_cumulative, axis=1)
        m_t = t0 + o_r < T
        tl.store(p_dprevious + t0 + o_r, b_previous, mask=m_t)
        _put(p_dcumulative + t0 + o_r, b_cumulative, m_t, ADD_CUMULATIVE)


@triton.jit
def attend_bwd(
    b_query, p_dcontext, p_dweights,
    p_memory, p_processed, p_previous, p_cumulative, p_location, p_v, p_v_bias, p_weights,
    p_dprocessed, p_dlocation, p_dv, p_dv_bias, p_dprevious, p_dcumulative,
    p_g, p_dz, p_products,
    length, T, A, D, sharpening, s_mt, s_md, s_pt, s_pa, s_l,
    TAPS: tl.constexpr, NORMALIZATION: tl.constexpr, HAS_V_BIAS: tl.constexpr, HAS_DWEIGHTS: tl.constexpr,
    ADD: tl.constexpr, ADD_CUMULATIVE: tl.constexpr, FOLD: tl.constexpr,
    BT: tl.constexpr, BA: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The backward of `attend` for one item and one step, by one program; returns d_query, [BA] float32.

    The gradient of the memory is left to the caller: weights x d_context, summed over steps. Visibility of rows is
    as for `attend`: barriers before the call and after it are the caller's. No float atomics: the same bits every
    time.

    Args:
        b_query, p_memory, p_processed, p_previous, p_cumulative, p_location, p_v, p_v_bias, length, T, A, D,
            sharpening, strides, TAPS, NORMALIZATION, HAS_V_BIAS: those of the forward step.
        p_dcontext: [D], any float dtype.
        p_dweights: [T], any float dtype, read if HAS_DWEIGHTS: all that reaches the weights but through this step's
            context: from the outside, and from later steps through their previous and cumulative weights.
        p_weights: of the forward step, [T] float32. A mask needs no argument: masked positions have weight 0.
        p_dprocessed: [T, A], contiguous: stored (zeros beyond the length), any float dtype; or added to if ADD,
            float32.
        p_dlocation: [A, s_l] float32, contiguous; p_dv: [A] float32; p_dv_bias: one float32, used if HAS_V_BIAS;
            this item's sums: stored, or added to if ADD.
        p_dprevious: [T], any float dtype: stored, if FOLD; may be p_dweights.
        p_dcumulative: [T], any float dtype: stored, or added to if ADD_CUMULATIVE, if FOLD. It is the gradient that
            reaches the cumulative weights through this step's windows; through next = cumulative + weights comes
            more.
        p_g, p_dz, p_products: scratch, this program's alone: [T] float32; [T, A] in the product's dtype, used if
            ADD; [T, s_l] float32, used if FOLD.
        FOLD: gradients of the previous and the cumulative weights are wanted.
        BT, BA, BK, BR, BD, PRECISION: as of `attend`. With BK at least 2 TAPS the sums for p_dlocation stay in
            registers; with less they are added to memory BT positions at a time.
    """
    o_r, o_a = tl.arange(0, BT), tl.arange(0, BA)
    m_a = o_a < A
    b_total = _weights_gradient(
        p_memory, p_dcontext, p_dweights, p_weights, p_g, length, D, s_mt, s_md, HAS_DWEIGHTS, BR, BD
    )
    tl.debug_barrier()
    b_dquery = tl.zeros((BA,), tl.float32)
    b_dv = tl.zeros((BA,), tl.float32)
    b_dbias = tl.zeros((BT,), tl.float32)
    for t0 in range(0, length if ADD else T, BT):
        m_t = t0 + o_r < length
        b_h = attend_hidden(
            b_query, p_processed, p_previous, p_cumulative, p_location, t0, length, T, A, s_pt, s_pa, s_l,
            TAPS, BT, BA, BK, PRECISION,
        )  # fmt: skip
        b_v, b_bias = _v_and_bias(p_v, p_v_bias, A, BA, HAS_V_BIAS)  # each time: it would be kept in registers
        b_w = tl.load(p_weights + t0 + o_r, mask=m_t, other=0.0)
        b_g = tl.load(p_g + t0 + o_r, mask=m_t, other=0.0)
        b_de = sharpening * b_w * (b_g - b_total)  # [BT]
        if NORMALIZATION == "sigmoid":
            b_e = sharpening * (tl.sum(b_h * b_v[None, :], axis=1) + b_bias)
            b_de *= tl.sigmoid(-b_e)
        b_dv += tl.sum(b_de[:, None] * b_h, axis=0)
        b_dbias += b_de
        b_dz = b_de[:, None] * b_v[None, :] * (1.0 - b_h * b_h)  # [BT, BA]
        b_dquery += tl.sum(b_dz, axis=0)
        o_block = tl.cast(t0, tl.int64) * A
        o_tile = (o_r * A)[:, None] + o_a[None, :]
        m_tile = (t0 + o_r < T)[:, None] & m_a[None, :]
        _put(p_dprocessed + o_block + o_tile, b_dz, m_tile, ADD)
        if ADD:
            tl.store(p_dz + o_block + o_tile, b_dz.to(p_dz.dtype.element_ty), mask=m_tile)
    _put(p_dv + o_a, b_dv, m_a, ADD)
    if HAS_V_BIAS:
        b_total = tl.sum(b_dbias, axis=0)
        if ADD:
            b_total += tl.load(p_dv_bias)
        tl.store(p_dv_bias, b_total)
    tl.debug_barrier()
    _location_products(
        p_dz if ADD else p_dprocessed, p_previous, p_cumulative, p_location, p_dlocation, p_products,
        length, T, A, s_l, TAPS, ADD, FOLD, BT, BA, BK, PRECISION,
    )  # fmt: skip
    if FOLD:
        tl.debug_barrier()
        _fold_windows(p_products, p_dprevious, p_dcumulative, length, T, s_l, TAPS, ADD_CUMULATIVE, BT, BK)
    return b_dquery


@triton.jit
def _length_of(p_lengths, i_b, T, HAS_LENGTHS: tl.constexpr):
    if HAS_LENGTHS:
        return tl.minimum(tl.maximum(tl.load(p_lengths + i_b).to(tl.int32), 0), T)
    return T


@triton.jit
def _query(p_query, i_b, A, s_q, BA: tl.constexpr):
    """The processed query of an item, [BA] float32."""
    o_a = tl.arange(0, BA)
    return tl.load(p_query + i_b * s_q + o_a, mask=o_a < A, other=0.0).to(tl.float32)


@triton.jit
def location_attention_fwd_kernel(
    p_query, p_memory, p_processed, p_previous, p_cumulative, p_location, p_v, p_v_bias, p_mask, p_lengths,
    p_rows,  # [B, blocks of D, T] float32: the weights, as each program makes them
    p_weights, p_context,  # [B, T] and [B, D]
    T, A, D, sharpening,
    s_q, s_mb, s_mt, s_md, s_pb, s_pt, s_pa, s_fb, s_l, s_kb, s_k,
    TAPS: tl.constexpr, NORMALIZATION: tl.constexpr, HAS_V_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, BT: tl.constexpr, BA: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr,
    BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of D, B)."""
    i_d, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    length = _length_of(p_lengths, i_b, T, HAS_LENGTHS)
    p_rows += (i_b * tl.num_programs(0) + i_d) * T
    attend_weights(
        _query(p_query, i_b, A, s_q, BA), p_processed + i_b * s_pb, p_previous + i_b * s_fb, p_cumulative + i_b * s_fb,
        p_location, p_v, p_v_bias, p_mask + i_b * s_kb, p_rows, p_rows,
        length, T, A, sharpening, s_pt, s_pa, s_l, s_k,
        TAPS, NORMALIZATION, HAS_V_BIAS, HAS_MASK, False, BT, BA, BK, PRECISION,
    )  # fmt: skip
    tl.debug_barrier()
    if i_d == 0:
        for t0 in range(0, T, BT):
            o_t = t0 + tl.arange(0, BT)
            tl.store(p_weights + i_b * T + o_t, tl.load(p_rows + o_t, mask=o_t < T, other=0.0), mask=o_t < T)
    b_context = attend_context(p_memory + i_b * s_mb, p_rows, i_d * BD, length, D, s_mt, s_md, BR, BD)
    o_d = i_d * BD + tl.arange(0, BD)
    tl.store(p_context + i_b * D + o_d, b_context, mask=o_d < D)


@triton.jit
def location_attention_bwd_kernel(
    p_dcontext, p_dweights,  # [B, D] and [B, T]
    p_query, p_memory, p_processed, p_previous, p_cumulative, p_location, p_v, p_v_bias, p_lengths, p_rows,
    p_dquery, p_dprocessed, p_dlocation, p_dv, p_dv_bias,  # an item's own, contiguous
    p_dprevious, p_dcumulative, p_products, p_g,  # of [B, 2, T]; scratch: [B, T, s_l] and [B, T], float32
    T, A, D, sharpening,
    s_q, s_mb, s_mt, s_md, s_pb, s_pt, s_pa, s_fb, s_l, s_r,
    TAPS: tl.constexpr, NORMALIZATION: tl.constexpr, HAS_V_BIAS: tl.constexpr, HAS_DWEIGHTS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, FOLD: tl.constexpr, BT: tl.constexpr, BA: tl.constexpr, BK: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (B,)."""
    i_b = tl.program_id(0).to(tl.int64)
    length = _length_of(p_lengths, i_b, T, HAS_LENGTHS)
    b_dquery = attend_bwd(
        _query(p_query, i_b, A, s_q, BA), p_dcontext + i_b * D, p_dweights + i_b * T,
        p_memory + i_b * s_mb, p_processed + i_b * s_pb, p_previous + i_b * s_fb, p_cumulative + i_b * s_fb,
        p_location, p_v, p_v_bias, p_rows + i_b * s_r,
        p_dprocessed + i_b * T * A, p_dlocation + i_b * A * s_l, p_dv + i_b * A, p_dv_bias + i_b,
        p_dprevious + i_b * 2 * T, p_dcumulative + i_b * 2 * T, p_g + i_b * T, p_g, p_products + i_b * T * s_l,
        length, T, A, D, sharpening, s_mt, s_md, s_pt, s_pa, s_l,
        TAPS, NORMALIZATION, HAS_V_BIAS, HAS_DWEIGHTS, False, False, FOLD, BT, BA, BK, BR, BD, PRECISION,
    )  # fmt: skip
    o_a = tl.arange(0, BA)
    tl.store(p_dquery + i_b * A + o_a, b_dquery, mask=o_a < A)


def _forward_heuristic(configs: tuple[Config, ...]):
    def widest_that_fills(dtype: torch.dtype, items: int, columns: int) -> Config:
        return next((c for c in configs if items * triton.cdiv(columns, c["BD"]) >= 128), configs[-1])

    return widest_that_fills


def _constants(location: Tensor, taps: int, normalization: str) -> dict:
    return {
        "TAPS": taps,
        "NORMALIZATION": normalization,
        "BA": max(SMALLEST_DOT, triton.next_power_of_2(len(location))),
        "PRECISION": product_precision(location.dtype),
    }


def _forward(
    query: Tensor,
    memory: Tensor,
    processed: Tensor,
    cat: Tensor,
    location: Tensor,
    v: Tensor,
    v_bias: Tensor | None,
    mask: Tensor | None,
    lengths: Tensor | None,
    taps: int,
    sharpening: float,
    normalization: str,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """(context [B, D], weights [B, T] in `dtype`, weights [B, T] float32)."""
    B, T, D = memory.shape
    A = location.shape[0]
    configs = FORWARD_CONFIGS[location.dtype.itemsize, A > WIDE_ATTENTION]
    config = pick_config("location_attention_fwd", configs, _forward_heuristic(configs), location, items=B, columns=D)
    blocks = triton.cdiv(D, config["BD"])
    rows = torch.empty((B, blocks, T), dtype=torch.float32, device=memory.device)
    weights = torch.empty((B, T), dtype=dtype, device=memory.device)
    context = torch.empty((B, D), dtype=location.dtype, device=memory.device)
    if memory.numel() == 0:
        return context.zero_(), weights.zero_(), rows.zero_()[:, 0]
    launch(
        OP, location_attention_fwd_kernel, (blocks, B),
        query, memory, processed, cat, cat[:, 1], location, v, v_bias, rows if mask is None else mask, lengths,
        rows, weights, context,
        T, A, D, sharpening, query.stride(0), *memory.stride(), *processed.stride(), cat.stride(0), location.stride(0),
        *((0, 0) if mask is None else mask.stride()),
        device=memory.device, HAS_V_BIAS=v_bias is not None, HAS_MASK=mask is not None,
        HAS_LENGTHS=lengths is not None, **_constants(location, taps, normalization), **config,
    )  # fmt: skip
    return context, weights, rows[:, 0]


class _LocationAttention(Function):
    """Arguments of `_forward`."""

    @staticmethod
    def forward(
        ctx, query, memory, processed, cat, location, v, v_bias, mask, lengths, taps, sharpening, normalization, dtype
    ):
        context, weights, rows = _forward(
            query, memory, processed, cat, location, v, v_bias, mask, lengths, taps, sharpening, normalization, dtype
        )
        ctx.save_for_backward(query, memory, processed, cat, location, v, v_bias, lengths, rows)
        ctx.taps, ctx.sharpening, ctx.normalization = taps, sharpening, normalization
        ctx.set_materialize_grads(False)
        if not _wants_more_than_memory(ctx):
            ctx.mark_non_differentiable(weights)
        return context, weights

    @staticmethod
    @once_differentiable
    def backward(ctx, dcontext, dweights):
        if dcontext is None and dweights is None:
            return (None,) * 13
        query, memory, processed, cat, location, v, v_bias, lengths, rows = ctx.saved_tensors
        if memory.numel() == 0:
            inputs = (query, memory, processed, cat, location, v, v_bias)
            return *(None if x is None else torch.zeros_like(x) for x in inputs), *(None,) * 6
        B, T, D = memory.shape
        A, columns = location.shape
        device = memory.device
        wants_memory, wants_cat = ctx.needs_input_grad[1], ctx.needs_input_grad[3]
        if dcontext is None:
            dcontext = torch.zeros((B, D), dtype=location.dtype, device=device)
        dcontext = dcontext.contiguous()
        dmemory = rows.to(memory.dtype).unsqueeze(2) * dcontext.to(memory.dtype).unsqueeze(1) if wants_memory else None
        if not _wants_more_than_memory(ctx):
            return None, dmemory, *(None,) * 11
        dquery, dprocessed = (torch.empty(x.shape, dtype=x.dtype, device=device) for x in (query, processed))
        dcat = torch.empty(cat.shape, dtype=cat.dtype, device=device) if wants_cat else None
        products = torch.empty((B, T, columns), dtype=torch.float32, device=device) if wants_cat else None
        dlocation, dv, dv_bias, g = (
            torch.empty((B, *shape), dtype=torch.float32, device=device) for shape in ((A, columns), (A,), (), (T,))
        )
        configs = BACKWARD_CONFIGS[location.dtype.itemsize, A > WIDE_ATTENTION]
        config = pick_config(
            "location_attention_bwd", configs, lambda dtype, **shape: configs[0], location, items=B, columns=D
        )
        launch(
            OP, location_attention_bwd_kernel, (B,),
            dcontext, dcontext if dweights is None else dweights.contiguous(),
            query, memory, processed, cat, cat[:, 1], location, v, v_bias, lengths, rows,
            dquery, dprocessed, dlocation, dv, dv_bias, *((g, g, g) if dcat is None else (dcat, dcat[:, 1], products)),
            g,
            T, A, D, ctx.sharpening,
            query.stride(0), *memory.stride(), *processed.stride(), cat.stride(0), location.stride(0), rows.stride(0),
            device=device, HAS_V_BIAS=v_bias is not None, HAS_DWEIGHTS=dweights is not None,
            HAS_LENGTHS=lengths is not None, FOLD=wants_cat, **config,
            **_constants(location, ctx.taps, ctx.normalization),
        )  # fmt: skip
        dv_bias = None if v_bias is None else dv_bias.sum(0, keepdim=True).to(v_bias.dtype)
        return (
            dquery, dmemory, dprocessed, dcat, dlocation.sum(0).to(location.dtype), dv.sum(0).to(v.dtype), dv_bias,
            None, None, None, None, None, None,
        )  # fmt: skip


def _wants_more_than_memory(ctx) -> bool:
    return any(wanted for i, wanted in enumerate(ctx.needs_input_grad) if i != 1)


def fold_location(location_conv_weight: Tensor, location_dense_weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The location convolution and the dense layer after it as one matrix.

    Args:
        location_conv_weight: [F, 2, k]; location_dense_weight: [A, F].
        dtype: of the result; the product is computed in float32 at least.

    Returns:
        [A, 2k and zeros up to a multiple of 64], column channel * k + tap; differentiable.
    """
    wide = torch.promote_types(location_conv_weight.dtype, torch.float32)
    on = backend.autocast_dtype(location_conv_weight) is not None  # it may not exist on the device
    with torch.autocast(location_conv_weight.device.type, enabled=False) if on else nullcontext():
        product = location_dense_weight.to(wide) @ location_conv_weight.to(wide).flatten(1)
    return F.pad(product.to(dtype), (0, -product.shape[1] % WINDOW))


def location_attention(
    query: Tensor,
    memory: Tensor,
    processed_memory: Tensor,
    attention_weights_cat: Tensor,
    query_weight: Tensor,
    location_conv_weight: Tensor,
    location_dense_weight: Tensor,
    v_weight: Tensor,
    mask: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    v_bias: Tensor | None = None,
    sharpening: float = 1.0,
    normalization: str = "softmax",
    location_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of location-sensitive attention.

    Chorowski et al. 2015, "Attention-Based Models for Speech Recognition"; Attention in NVIDIA's tacotron2/model.py.
    Any strides; tensors in float32, float16 or bfloat16, under autocast of different ones.

    Args:
        query: attention LSTM's output, [B, n_query].
        memory: encoder outputs, [B, T, n_memory].
        processed_memory: memory through the memory layer, [B, T, A].
        attention_weights_cat: previous and cumulative weights, [B, 2, T]; any float dtype.
        query_weight: [A, n_query].
        location_conv_weight: [F, 2, k] with odd k.
        location_dense_weight: [A, F].
        v_weight: [1, A].
        mask: [B, T] bool, True in padding; absent: nothing is padding.
        lengths: [B] integers: what lies beyond is padding, besides what the mask says, and neither memory nor
            processed memory is read there. They are read on the device.
        v_bias: [1], added to each energy, as coqui and ESPnet have it; without influence on a softmax.
        sharpening: factor of the energies, as in ESPnet.
        normalization: 'softmax' of the energies, or their 'sigmoid' over the sum of all sigmoids, as in coqui.
        location_weight: what `fold_location` made of the location weights, to have it computed once for many steps.

    Returns:
        (context [B, n_memory], attention weights [B, T], float32 under autocast). An item that is all padding gets
        zeros.

    Raises:
        FastglowError: shapes, a mask, lengths or a normalization that do not fit the above.
    """
    _check(
        query, memory, processed_memory, attention_weights_cat, query_weight, location_conv_weight,
        location_dense_weight, v_weight, mask, lengths, v_bias, normalization, location_weight,
    )  # fmt: skip
    options = {"lengths": lengths, "v_bias": v_bias, "sharpening": sharpening, "normalization": normalization}
    tensors = [query, memory, processed_memory, query_weight, location_conv_weight, location_dense_weight, v_weight]
    autocast = backend.autocast_dtype(query)
    dtype = query.dtype if autocast is None else autocast
    unsupported = _unsupported([*tensors, v_bias], dtype, autocast is not None, v_weight.shape[1])
    others = [attention_weights_cat, mask, lengths, v_bias, location_weight]
    if not backend.picks_triton(OP, *tensors, *others, unsupported=unsupported):
        return reference_location_attention(
            query, memory, processed_memory, attention_weights_cat, query_weight, location_conv_weight,
            location_dense_weight, v_weight, mask, **options,
        )  # fmt: skip
    if location_weight is None:
        location_weight = fold_location(location_conv_weight, location_dense_weight, dtype)
    return _LocationAttention.apply(
        F.linear(query, query_weight),
        memory,
        processed_memory,
        attention_weights_cat if attention_weights_cat.stride(2) == 1 else attention_weights_cat.contiguous(),
        location_weight.to(dtype).contiguous(),
        v_weight.reshape(-1).contiguous(),
        v_bias,
        mask,
        None if lengths is None else lengths.contiguous(),
        location_conv_weight.shape[2],
        sharpening,
        normalization,
        dtype if autocast is None else torch.float32,
    )


def _unsupported(tensors: list[Tensor | None], dtype: torch.dtype, is_autocast: bool, A: int) -> str | None:
    dtypes = {str(x.dtype).removeprefix("torch.") for x in tensors if x is not None}
    if not is_autocast and len(dtypes) > 1:
        return f"its tensors have the dtypes {', '.join(sorted(dtypes))}"
    most = MOST_ATTENTION.get(dtype.itemsize, A)
    return f"attention dimension {A} is above {most}" if A > most else None


def _check(
    query, memory, processed_memory, cat, query_weight, conv_weight, dense_weight, v_weight, mask, lengths, v_bias,
    normalization, location_weight,
) -> None:  # fmt: skip
    if memory.dim() != 3:
        raise FastglowError(f"memory has shape {tuple(memory.shape)}: pass [B, T, n_memory]")
    if conv_weight.dim() != 3 or conv_weight.shape[1] != 2 or conv_weight.shape[2] % 2 == 0:
        raise FastglowError(f"location_conv_weight has shape {tuple(conv_weight.shape)}: pass [filters, 2, odd k]")
    B, T, _ = memory.shape
    A = query_weight.shape[0]
    n_filters, _, kernel_size = conv_weight.shape
    expected = {
        "query": (query, (B, query_weight.shape[-1])),
        "processed_memory": (processed_memory, (B, T, A)),
        "attention_weights_cat": (cat, (B, 2, T)),
        "location_dense_weight": (dense_weight, (A, n_filters)),
        "v_weight": (v_weight, (1, A)),
        "mask": (mask, (B, T)),
        "lengths": (lengths, (B,)),
        "v_bias": (v_bias, (1,)),
        "location_weight": (location_weight, (A, triton.cdiv(2 * kernel_size, WINDOW) * WINDOW)),
    }
    for name, (x, shape) in expected.items():
        if x is not None and x.shape != shape:
            raise FastglowError(
                f"{name} has shape {tuple(x.shape)}, not {shape}, beside memory {tuple(memory.shape)}, query_weight "
                f"{tuple(query_weight.shape)} and location_conv_weight {tuple(conv_weight.shape)}"
            )
    if mask is not None and mask.dtype != torch.bool:
        raise FastglowError(f"mask has dtype {mask.dtype}: pass torch.bool, True in padding")
    if lengths is not None and (lengths.is_floating_point() or lengths.dtype == torch.bool):
        raise FastglowError(f"lengths have dtype {lengths.dtype}: pass integers")
    if normalization not in NORMALIZATIONS:
        raise FastglowError(
            f"normalization {normalization!r} is unknown: pass {' or '.join(map(repr, NORMALIZATIONS))}"
        )
